"""Uploading an exported folder to the Hugging Face hub, or saying what would be uploaded."""

from __future__ import annotations

from pathlib import Path

from sae_lib.util.errors import ArtifactError, first_line

TOKEN_HELP = (
    "run `hf auth login`, or set HF_TOKEN to a token with write access (https://huggingface.co/settings/tokens)"
)


def check_repo(repo: str) -> None:
    """Raises ArtifactError when `repo` is no id USER/NAME of a hub repository."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise ArtifactError(f"push: {repo!r} is no repository id ({first_line(error)}); give USER/NAME") from None
    if "/" not in repo:
        raise ArtifactError(f"push: {repo!r} names no owner; give USER/NAME")


def check_token() -> None:
    """Raises ArtifactError when nobody is logged in to the hub. No network."""
    from huggingface_hub import get_token

    if get_token() is None:
        raise ArtifactError(f"push: no Hugging Face token was found; {TOKEN_HELP}, or add --dry-run")


def upload_plan(folder: Path, repo: str, revision: str, private: bool) -> str:
    """What `push` would do, one file a line with its size in bytes. No network."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    sizes = [path.stat().st_size for path in files]
    width = len(f"{max(sizes):,}")
    access = "private" if private else "public"
    return "\n".join(
        [
            f"would create, if it is missing: https://huggingface.co/{repo} (model, {access})",
            f"would upload to revision {revision}:",
            *(
                f"  {size:>{width},}  {path.relative_to(folder).as_posix()}"
                for size, path in zip(sizes, files, strict=True)
            ),
            f"{sum(sizes):,} bytes in {len(files)} files; nothing was sent",
        ]
    )


def push(folder: Path, repo: str, revision: str, private: bool) -> str:
    """Create the repository if it is missing, upload the folder in one commit, and return the commit's address.

    Raises:
        ArtifactError: in one line, when the hub refuses or cannot be reached. The folder stays as it is.
    """
    from httpx2 import HTTPError
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    api = HfApi()
    try:
        api.create_repo(repo, private=private, repo_type="model", exist_ok=True)
        if revision != "main":
            api.create_branch(repo, branch=revision, repo_type="model", exist_ok=True)
        commit = api.upload_folder(
            repo_id=repo,
            folder_path=folder,
            revision=revision,
            repo_type="model",
            commit_message="Add sparse autoencoder",
        )
    except HfHubHTTPError as error:
        status = error.response.status_code if error.response is not None else None
        if status in (401, 403):
            raise ArtifactError(f"push: the hub refuses to write to {repo} with this token; {TOKEN_HELP}") from error
        raise ArtifactError(f"push: the hub refuses {repo}: {first_line(error)}") from error
    except (HTTPError, ConnectionError, TimeoutError) as error:
        raise ArtifactError(
            f"push: the hub cannot be reached ({first_line(error)}); connect, unset HF_HUB_OFFLINE, and upload "
            f"{folder}, which is complete: hf upload {repo} {folder}"
        ) from error
    return str(commit.commit_url)
