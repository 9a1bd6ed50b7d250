import pytest

from nsrelu_bench.errors import (
    BenchError,
    UsageError,
    describe_error,
    error_reason,
    lookup,
    unknown,
)


def test_an_unknown_name_lists_what_there_is_and_the_nearest() -> None:
    assert str(unknown("rellu", ["relu", "mish"], "activation")) == (
        "unknown activation 'rellu'; did you mean 'relu'? choose from: relu, mish"
    )
    assert str(unknown("x", ["relu", "mish"], "activation")) == (
        "unknown activation 'x'; choose from: relu, mish"
    )


def test_a_brief_answer_lists_only_where_nothing_is_near() -> None:
    assert str(unknown("epoch", ["epochs", "lr"], "setting", brief=True)) == (
        "unknown setting 'epoch'; did you mean 'epochs'?"
    )
    assert str(unknown("x", ["epochs", "lr"], "setting", brief=True)).endswith("epochs, lr")


def test_looking_up_gives_the_value_or_a_usage_error() -> None:
    assert lookup({"a": 1}, "a", "letter") == 1
    with pytest.raises(UsageError, match="unknown letter 'b'; choose from: a"):
        lookup({"a": 1}, "b", "letter")


@pytest.mark.parametrize(
    ("error", "reason", "line"),
    [
        (FileNotFoundError(2, "No such file", "x"), "No such file", None),
        (OSError("no image"), "no image", "OSError: no image"),
        (ValueError("one\ntwo  three"), "one", "ValueError: one two three"),
        (ValueError(), "ValueError", "ValueError"),
        (BenchError("lr: one\nseed: two"), "lr: one", "lr: one seed: two"),
    ],
)
def test_an_error_is_described_in_one_line(error: Exception, reason: str, line: str | None) -> None:
    assert error_reason(error) == reason
    assert line is None or describe_error(error) == line
