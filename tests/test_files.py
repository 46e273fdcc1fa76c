import pytest

from srfa.errors import InputError
from srfa.files import require_writable, require_writable_folder, write_text, writing

REMEDY = "name a file in a folder that you may write to"


def tree(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


@pytest.fixture
def impossible(tmp_path):
    """Return the paths that nothing can be written to, with the reason of each."""
    (tmp_path / "file").write_text("kept")
    (tmp_path / "folder").mkdir()
    return {
        tmp_path / "folder": "it is a folder",
        tmp_path / "file" / "c.json": "",
        tmp_path / "file" / "deeper" / "c.json": "",
        tmp_path / ("long" * 100): "File name too long",
        tmp_path.joinpath("/proc/nowhere/c.json"): "",
        tmp_path.joinpath("/dev/null"): "no regular file",
    }


def test_what_cannot_be_written_is_refused_before_and_while_writing_and_leaves_nothing(impossible, tmp_path):
    before = tree(tmp_path)
    for path, reason in impossible.items():
        with pytest.raises(InputError) as caught:
            require_writable(path)
        assert str(caught.value).startswith(f"{path}: cannot be written ({reason}")
        assert "; name a file in " in str(caught.value)
        if path.name != "null":
            with pytest.raises(InputError, match="cannot be written"):
                write_text(path, "text")
    assert tree(tmp_path) == before
    assert (tmp_path / "file").read_text() == "kept"


def test_a_folder_that_is_a_file_is_refused(tmp_path):
    (tmp_path / "file").write_text("kept")
    with pytest.raises(InputError, match=REMEDY):
        require_writable_folder(tmp_path / "file")


def test_asking_makes_no_folder(tmp_path):
    require_writable(tmp_path / "new" / "deep" / "c.json")
    require_writable_folder(tmp_path / "new")
    assert tree(tmp_path) == []


def test_a_file_replaces_the_one_before_and_its_folder_is_made(tmp_path):
    path = tmp_path / "new" / "deep" / "c.json"
    write_text(path, "first\n")
    require_writable(path)
    write_text(path, "µs\n")
    assert path.read_text(encoding="utf-8") == "µs\n"
    assert tree(tmp_path) == ["new", "new/deep", "new/deep/c.json"]


def test_a_write_that_fails_leaves_the_file_before_and_no_other(tmp_path):
    path = tmp_path / "picture.png"
    path.write_text("before")

    def fail():
        with writing(path) as temporary:
            assert temporary.suffix == ".png"
            temporary.write_text("half")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert path.read_text() == "before"
    assert tree(tmp_path) == ["picture.png"]
