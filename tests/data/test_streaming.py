from __future__ import annotations

import errno
import json
from functools import partial
from itertools import islice
from pathlib import Path

import datasets
import httpx2
import pytest

from sae_lib.data import corpus
from sae_lib.data.config import CorpusConfig
from sae_lib.data.corpus import MOST_FAILURES, Rows, documents_of, is_network_error, load_documents, retried
from sae_lib.util.errors import ArtifactError

ROWS = 40


class Network:
    """Rows that arrive in two files; reading a row fails as often as `failures` says."""

    def __init__(self, **failures: int) -> None:
        self.left = {int(row.removeprefix("row")): count for row, count in failures.items()}
        self.waits: list[float] = []

    def rows(self, files):
        for file in files:
            for i in range(file * ROWS // 2, (file + 1) * ROWS // 2):
                if self.left.get(i, 0):
                    self.left[i] -= 1
                    raise ConnectionError(f"lost at {i}\nsecond line")
                yield {"text": f"document {i}", "number": i}

    def dataset(self) -> datasets.IterableDataset:
        return datasets.IterableDataset.from_generator(self.rows, gen_kwargs={"files": [0, 1]})

    def retried(self) -> Rows:
        return retried(self.dataset(), "the corpus", self.waits.append)


def numbers(rows) -> list[int]:
    return [row["number"] for row in rows]


def test_after_a_failure_the_next_row_follows():
    network = Network(row0=1, row7=3, row8=1, row25=2)
    assert numbers(network.retried()) == list(range(ROWS))
    assert network.waits == [1, 1, 2, 4, 1, 1, 2], "the wait doubles until a row arrives"


def test_every_pass_begins_at_the_first_row():
    network = Network(row7=1)
    rows = network.retried()
    assert numbers(rows) == list(range(ROWS)) and numbers(rows) == list(range(ROWS))
    assert numbers(islice(rows, 3)) == [0, 1, 2] and numbers(rows) == list(range(ROWS))


@pytest.mark.parametrize("world", [2, 3])
def test_the_share_of_a_rank_survives_failures_too(world):
    for rank in range(world):
        rows = Network(row7=1, row20=2, row33=1).retried()
        assert numbers(islice(rows, rank, None, world)) == list(range(rank, ROWS, world))


class Flaky:
    """A streamed dataset that loses its connection after each row it has given."""

    def __init__(self, dataset: datasets.IterableDataset) -> None:
        self.dataset = dataset
        self.state_dict, self.load_state_dict = dataset.state_dict, dataset.load_state_dict

    def __iter__(self):
        for given, row in enumerate(self.dataset):
            if given == 1:
                raise ConnectionError("lost")
            yield row


def test_files_are_gone_on_with_at_the_right_row(tmp_path):
    """Read through Arrow tables, as the files of the hub are, and not row by row."""
    names = [str(tmp_path / f"{i}.jsonl") for i in range(2)]
    for i, name in enumerate(names):
        lines = [json.dumps({"number": n}) for n in range(i * ROWS // 2, (i + 1) * ROWS // 2)]
        Path(name).write_text("\n".join(lines) + "\n")
    stream = datasets.load_dataset("json", data_files=names, split="train", streaming=True)
    waits: list[float] = []
    assert numbers(retried(Flaky(stream), "the corpus", waits.append)) == list(range(ROWS))
    assert set(waits) == {1.0} and len(waits) == ROWS - 1


def test_a_network_that_stays_away_is_told_in_one_line():
    network = Network(row7=100)
    read = []
    with pytest.raises(ArtifactError, match=r"could not be read on after 7 rows, in 8 attempts .*lost at 7") as caught:
        read += numbers(network.retried())
    assert "\n" not in str(caught.value) and "run the same command again" in str(caught.value)
    assert network.waits == [2.0**i for i in range(MOST_FAILURES)] and sum(network.waits) < 130


def test_a_corpus_of_the_hub_is_retried(monkeypatch):
    network = Network(row5=2, row9=100)
    monkeypatch.setattr(corpus, "_hub_dataset", lambda _: network.dataset())
    monkeypatch.setattr(corpus, "retried", partial(retried, sleep=network.waits.append))
    config = CorpusConfig(source="hub", name="somebody/text", revision="main")
    with pytest.raises(ArtifactError, match=r"^corpus: somebody/text could not be read on after 9 rows") as caught:
        list(documents_of("train", load_documents(config), config))
    assert "\n" not in str(caught.value)
    assert network.waits[:2] == [1, 2]


def response(status: int) -> httpx2.HTTPStatusError:
    request = httpx2.Request("GET", "https://example.org")
    return httpx2.HTTPStatusError("no", request=request, response=httpx2.Response(status, request=request))


def test_what_is_worth_trying_again():
    for error in (
        ConnectionResetError(), TimeoutError(), EOFError(), OSError("name or service not known"), response(429),
        response(503), httpx2.RemoteProtocolError("cut"), httpx2.ReadTimeout("slow"),
    ):  # fmt: skip
        assert is_network_error(error), error
    for other in (
        FileNotFoundError(), PermissionError(), OSError(errno.ENOSPC, "full"), response(401), response(404),
        ValueError("no JSON"), KeyError("text"),
    ):  # fmt: skip
        assert not is_network_error(other), other


def test_other_errors_are_not_retried():
    def broken(files):
        yield {"number": 0}
        raise ValueError("no JSON")

    waits: list[float] = []
    dataset = datasets.IterableDataset.from_generator(broken, gen_kwargs={"files": [0]})
    with pytest.raises(ValueError, match="no JSON"):
        list(retried(dataset, "the corpus", waits.append))
    assert waits == []
