"""Releases are immutable, and ``latest`` moves forward only."""

import threading

import pytest

from srfa.errors import StoreError
from tasks.publish import LATEST_KEY, LatestRelease, move_latest, read_latest, upload_release
from tasks.store import open_store


@pytest.fixture
def store(tmp_path):
    return open_store(str(tmp_path / "store"))


@pytest.fixture
def folder(tmp_path):
    release = tmp_path / "release"
    (release / "figures").mkdir(parents=True)
    (release / "coefficients.json").write_text("{}")
    (release / "figures" / "parity.png").write_bytes(b"\x89")
    (release / "release.json").write_text('{"id": 1}')
    return release


def test_every_file_of_the_folder_is_stored_and_the_last_one_last(store, folder):
    written = []
    put = store.put
    store.put = lambda key, data, **options: written.append(key) or put(key, data, **options)
    prefix = upload_release(folder, "r1", store, last="release.json")
    assert sorted(written) == sorted(store.list(prefix))
    assert written[-1] == "releases/r1/release.json"
    assert store.get("releases/r1/figures/parity.png") == b"\x89"


def test_the_same_release_can_be_uploaded_again(store, folder):
    upload_release(folder, "r1", store, last="release.json")
    upload_release(folder, "r1", store, last="release.json")
    assert len(list(store.list("releases/"))) == 3


def test_another_content_under_the_same_id_is_refused_and_leaves_the_first(store, folder):
    upload_release(folder, "r1", store, last="release.json")
    (folder / "coefficients.json").write_text('{"changed": true}')
    with pytest.raises(StoreError, match=r"coefficients\.json is there with other content"):
        upload_release(folder, "r1", store, last="release.json")
    assert store.get("releases/r1/coefficients.json") == b"{}"


def test_latest_points_at_the_newest_whatever_the_order_of_moves(store):
    older = LatestRelease(release_id="a", published_at="2026-11-23T10:00:00Z")
    newer = LatestRelease(release_id="b", published_at="2026-11-23T11:00:00Z")
    assert move_latest(store, newer)
    assert not move_latest(store, older)
    assert read_latest(store) == newer


def test_of_many_movers_at_once_the_newest_ends_up_in_the_pointer(store):
    releases = [LatestRelease(release_id=f"r{i}", published_at=f"2026-11-23T10:00:0{i}Z") for i in range(4)]
    threads = [threading.Thread(target=move_latest, args=(store, release)) for release in releases]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert read_latest(store) == releases[-1]


def test_a_mover_that_is_always_beaten_gives_up_with_a_remedy(store):
    store.replace = lambda *_, **__: False
    with pytest.raises(StoreError, match="publish again"):
        move_latest(store, LatestRelease(release_id="a", published_at="2026-11-23T10:00:00Z"))


def test_a_broken_pointer_is_named(store):
    store.put(LATEST_KEY, b"not json")
    with pytest.raises(StoreError, match=r"latest\.json is broken"):
        read_latest(store)
