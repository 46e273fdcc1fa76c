import pytest

from srfa.document import Document, read_yaml
from srfa.errors import LimitsError


@pytest.fixture
def read(tmp_path):
    def from_text(text):
        path = tmp_path / "f.yaml"
        path.write_text(text)
        return read_yaml(path, LimitsError)

    return from_text


def test_values_come_with_the_line_of_their_key_or_item(read):
    document = read("a: 1\nb:\n  - x\n  - {c: 2}\n")
    assert document.data == {"a": 1, "b": ("x", {"c": 2})}
    assert document.place(("b", 1, "c")).endswith("f.yaml:4")
    assert document.place(("b", 0)).endswith("f.yaml:3")


def test_a_location_that_is_not_there_is_placed_at_what_encloses_it(read):
    document = read("a: 1\nb:\n  c: 2\n")
    assert document.place(("b", "missing", 3)).endswith("f.yaml:2")
    assert document.place(("missing",)).endswith("f.yaml:1")
    assert Document("made in code", None).place(("a",)) == "made in code"


def test_merged_keys_are_overridden_on_purpose_even_where_the_block_is_used_twice(read):
    document = read("base: &b {x: 1, y: 2}\nmid: &m {<<: *b, y: 3}\nlist: [*m, *m]\n")
    assert document.data["list"] == ({"x": 1, "y": 3}, {"x": 1, "y": 3})


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: 1\na: 2\n", ":2: key 'a' stands in line 1 already"),
        ("{a: 1, a: 2}\n", ":1: key 'a' stands in line 1 already"),
        ("a:\n  b: 1\n c: 2\n", ":3: not YAML"),
        ("a: 'open\n", "not YAML"),
        ("a: !!python/object:os.system x\n", ":1: not YAML"),
        ("a: 1\n---\nb: 2\n", ":2: not YAML"),
        ("a: &x [*x]\n", ":1: an alias refers to what it stands in"),
        ("[1]: 2\n", ":1: key"),
        ("just text\n", "should hold a mapping of keys to values, not str"),
    ],
)
def test_a_fault_is_refused_as_the_callers_error_with_its_line(read, text, said):
    with pytest.raises(LimitsError) as caught:
        read(text)
    assert said in str(caught.value)


def test_bytes_that_are_no_text_are_refused(tmp_path):
    path = tmp_path / "f.yaml"
    path.write_bytes(b"\xff\xfea")
    with pytest.raises(LimitsError, match="cannot be read"):
        read_yaml(path, LimitsError)


def test_a_control_character_is_refused(read):
    with pytest.raises(LimitsError, match="not YAML"):
        read("a: \x00\n")
