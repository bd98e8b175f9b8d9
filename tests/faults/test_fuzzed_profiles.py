"""Whatever a profile says, it is a valid profile or one line that names the field."""

from __future__ import annotations

import copy
import datetime
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sae_lib.mechanisms import methods
from sae_lib.profiles.profile import PROFILES, Profile, load_profile
from sae_lib.profiles.runs import Calibration, plan_runs
from sae_lib.util.errors import ArtifactError
from sae_lib.util.paths import Paths, output_root
from tests.profiles.test_profile import content

Place = tuple[Any, ...]
CALIBRATION = Calibration(coefficients=dict.fromkeys(methods("main", "as written"), 0.1), dropout_probability=0.3)
FUZZ = settings(
    max_examples=150,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)

TEXT = st.text(st.characters(codec="utf-8"), max_size=12)
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.sampled_from([0, -1, 1, 2, 7, 10**9, 2**63, 10**30, 10**400, -(10**400)]),
    st.sampled_from([0.0, -0.5, 0.5, 1.0, 1e-300, 1e300, float("inf"), float("-inf"), float("nan")]),
    st.sampled_from(["", "pocket", "none", "../../etc", "a\nb", "\u2028", "é 中 🙂", "1e3", "0x10", "~", "1_000"]),
    st.sampled_from([datetime.date(2020, 1, 2), datetime.datetime(2020, 1, 2, 3), b"\xff\x00"]),
    TEXT,
)
KEYS = SCALARS.filter(lambda key: key == key)  # NaN is no key that could be found again
PUT = [b"", b"\xff\xfe", b"\t", b"\x00", b"- ", b": ", b"{", b"&a *a", b"!!set ", b"!!bool ", b"|\n"]
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3),
    max_leaves=5,
)


def full() -> dict[str, Any]:
    """A valid profile in which every section has something to change."""
    profile = content()
    profile["methods"] |= {
        "atm": {"masking": {"c": 0.5, "warmup_steps": 10}, "optimizer": {"learning_rate": 1e-3}},
        "temporal_sae": {"temporal": {"coefficient": 0.1}, "resampling": {"threshold": 0.01, "interval": 20}},
        "standard": {"l1_coefficient": 0.1},
    }
    return profile | {
        "as_written": {"topk": {"k": 8}, "temporal_sae": {}},
        "ablations": {"atm_c": [0.0, 1.0], "atm_grid_seeds": [7], "toy": {"seeds": [1, 2], "steps": 10, "rhos": [0.5]}},
        "evaluation": {
            "reconstruction": {"batch_contexts": 2},
            "absorption": {"max_words": 100},
            "probing": {"source": "documentation", "context": 16},
            "stability": {"contexts": 2},
        },
    }


def places(value: Any, at: Place = ()) -> list[Place]:
    """The place of everything in nested dictionaries and lists."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [(*at, key) for key, _ in inner] + [place for key, each in inner for place in places(each, (*at, key))]


def owner(profile: Any, place: Place) -> Any:
    for key in place[:-1]:
        profile = profile[key]
    return profile


@st.composite
def mutated(draw: st.DrawFn) -> dict[str, Any]:
    """The profile with one to three values replaced, removed, wrapped, or put under another key."""
    profile = full()
    for _ in range(draw(st.integers(1, 3))):
        place = draw(st.sampled_from(places(profile)))
        holder, key = owner(profile, place), place[-1]
        kind = draw(st.sampled_from(["replace", "replace", "replace", "remove", "wrap", "rename", "add"]))
        if kind == "replace":
            holder[key] = draw(VALUES)
        elif kind == "remove":
            del holder[key]
        elif kind == "wrap":
            holder[key] = draw(st.sampled_from([[holder[key]], {"value": holder[key]}, [[None], holder[key]]]))
        elif isinstance(holder, dict):
            name = draw(KEYS)
            holder[name] = copy.deepcopy(holder[key]) if kind == "add" else holder.pop(key)
        if not profile:
            break
    return profile


def outcome(file: Path) -> Profile | str:
    """The profile in a file, or the one line that refuses it; any other exception passes."""
    try:
        profile = load_profile(file)
        plan_runs(profile, CALIBRATION)
        return profile
    except ArtifactError as error:
        line = str(error)
        assert line.splitlines() == [line], f"more than one line: {line!r}"
        return line


@FUZZ
@given(mutated())
def test_a_mutated_profile_is_valid_or_refused_by_field(tmp_path: Path, profile: dict[str, Any]) -> None:
    file = tmp_path / "mutated.yaml"
    file.write_text(yaml.safe_dump(profile, allow_unicode=True), encoding="utf8")
    said = outcome(file)
    if isinstance(said, Profile):
        assert Paths(said.name).root.parent == output_root(), "a profile writes into a folder of its own"
        return
    if not profile:
        assert said == "name: Field required"
        return
    names = {" ".join(text.split()) for key in (*Profile.model_fields, *profile) for text in (str(key), repr(key))}
    # A key of blanks has no name that could be told.
    assert said.startswith(tuple(names - {""})) or (said.startswith("unknown key") and "" in names), said


@FUZZ
@given(st.data())
def test_a_mangled_file_is_valid_or_refused_in_one_line(tmp_path: Path, data: st.DataObject) -> None:
    """Bytes of a shipped profile taken out and put in: what an editor or a transfer can do."""
    text = (PROFILES / "smoke.yaml").read_bytes()
    for _ in range(data.draw(st.integers(1, 3))):
        start = data.draw(st.integers(0, len(text)))
        stop = start + data.draw(st.integers(0, 40))
        put = data.draw(
            st.sampled_from([b"", b"\xff\xfe", b"\t", b"\x00", b"- ", b": ", b"{", b"&a *a", b"!!set ", b"|\n"])
        )
        text = text[:start] + put + text[stop:]
    (tmp_path / "mangled.yaml").write_bytes(text)
    outcome(tmp_path / "mangled.yaml")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (b"name: caf\xe9\n", "not UTF-8"),
        (b"\xff\xfen\x00a\x00", "not UTF-8"),
        (b"name: 2020-13-45\n", "not valid YAML"),
        (b"a: " + b"9" * 5000 + b"\n", "not valid YAML"),
        (b"[" * 2000, "not valid YAML"),
        (b"a: &a [*a]\n", "unknown key"),
    ],
    ids=["latin-1", "utf-16", "no such day", "too many digits", "too deep", "itself"],
)
def test_what_yaml_itself_stumbles_over(tmp_path: Path, text: bytes, says: str) -> None:
    (tmp_path / "odd.yaml").write_bytes(text)
    said = outcome(tmp_path / "odd.yaml")
    assert isinstance(said, str) and says in said


@pytest.mark.parametrize("name", ["", ".", "..", "../other", "a/b", "/tmp/elsewhere", "a\0b"])
def test_a_name_is_that_of_a_folder_under_the_output(tmp_path: Path, name: str) -> None:
    """`make clean` removes that folder, so no name may lead out of the output or be all of it."""
    (tmp_path / "named.yaml").write_text(yaml.safe_dump(full() | {"name": name}))
    said = outcome(tmp_path / "named.yaml")
    assert isinstance(said, str) and said.startswith("name: ")
