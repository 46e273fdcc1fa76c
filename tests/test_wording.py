import pytest
from pydantic import BaseModel, ValidationError

from srfa.wording import did_you_mean, explain, path_text, unknown


class Inner(BaseModel, extra="forbid", strict=True):
    width: int = 1


class Outer(BaseModel, extra="forbid", strict=True):
    inner: Inner = Inner()
    maybe: Inner | None = None
    many: tuple[Inner, ...] = ()
    named: dict[str, Inner] = {}
    label: str = ""


def said(document):
    with pytest.raises(ValidationError) as caught:
        Outer.model_validate(document)
    return explain(caught.value.errors()[0], Outer)


@pytest.mark.parametrize(
    ("value", "hint"),
    [
        ("h10", "; did you mean 'h100-pcie' or 'h100-sxm'?"),
        ("H100-SMX", "; did you mean 'h100-sxm'?"),
        ("llama-8b", "; did you mean 'meta/Llama-8B'?"),
        ("zzz", ""),
    ],
)
def test_the_nearest_name_is_offered_by_beginning_then_by_likeness(value, hint):
    assert did_you_mean(value, ["h100-pcie", "h100-sxm", "meta/Llama-8B"]) == hint


def test_an_unknown_name_among_none_says_so():
    assert unknown("workload", "a", []) == "unknown workload 'a'. Known: none"


def test_a_location_is_written_with_dots_and_brackets():
    assert path_text(("axes", "knobs", 0, "x")) == "axes.knobs[0].x"
    assert path_text(()) == ""


@pytest.mark.parametrize(
    "document",
    [
        {"inner": {"widht": 1}},
        {"maybe": {"widht": 1}},
        {"many": ({"widht": 1},)},
        {"named": {"a": {"widht": 1}}},
    ],
)
def test_a_misspelt_key_is_matched_with_the_keys_of_its_own_block(document):
    assert said(document).endswith("'widht'; did you mean 'width'? Known: width")


@pytest.mark.parametrize(
    ("document", "text"),
    [
        ({"label": 1.5}, "label=1.5 should be text; put it in quotes"),
        ({"label": None}, "label=None should be text"),
        ({"many": 3}, "many=3 should be a list, for example [a, b]"),
        ({"inner": {"width": "3"}}, "inner.width='3' should be a whole number"),
        ({"inner": 3}, "inner=3 should be a mapping of keys to values"),
    ],
)
def test_a_wrong_type_is_told_with_value_and_expectation(document, text):
    assert said(document) == text
