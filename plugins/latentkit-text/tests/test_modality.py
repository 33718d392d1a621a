"""What becomes of a text before it is encoded, and which texts are no good."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from latentkit_text.loading import open_text_encoder
from latentkit_text.modality import TextModality
from latentkit_text.plugin import TextConfig, TextEncoderConfig

from latentkit.contracts import BuildContext, InputSpec, Prepared, Sample
from latentkit.errors import RecipeError, SampleError

LETTERS = "abcdefghijklmnopqrstuvwxyz"


@pytest.fixture(scope="module")
def context(clip_folder: Path) -> BuildContext:
    return BuildContext(
        input=open_text_encoder(TextEncoderConfig(model=str(clip_folder)), BuildContext()).input
    )


def prepare(context: BuildContext, sample: Sample, **options: Any) -> Prepared:
    options = {"column": None, **options}
    (prepared,) = TextModality(TextConfig(**options), context).prepare(sample)
    return prepared


def text_of(context: BuildContext, sample: Sample, tmp_path: Path, **options: Any) -> str:
    modality = TextModality(TextConfig(**{"column": None, **options}), context)
    rows: list[Any] = [prepared.tensor for prepared in modality.prepare(sample)]
    modality.render([[row["tokens"][row["mask"].bool()]] for row in rows], tmp_path / "preview.txt")
    return (tmp_path / "preview.txt").read_text(encoding="utf-8").removesuffix("\n")


def test_the_text_is_the_media_or_a_file(context: BuildContext, tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    file.write_text("in a file", "utf-8-sig")
    assert text_of(context, Sample("1", "as media"), tmp_path) == "10 tokens: <s>as media</s>"
    assert text_of(context, Sample("2", file), tmp_path) == "11 tokens: <s>in a file</s>"


def test_the_preview_shows_what_the_encoder_sees_of_a_text(
    context: BuildContext, tmp_path: Path
) -> None:
    """What the tokenizer doesn't know, where a text was cut, and a line per text, whatever is in
    it.
    """
    assert text_of(context, Sample("1", "ö"), tmp_path) == "3 tokens: <s><pad></s>"
    assert (
        text_of(context, Sample("2", LETTERS * 2), tmp_path)
        == f"40 tokens (the limit): <s>{LETTERS}{LETTERS[:12]}</s>"
    )
    assert text_of(context, Sample("3", "a\nb\x0b"), tmp_path) == "6 tokens: <s>a\\nb\\x0b</s>"


def test_tokens_are_padded_to_a_multiple_of_sixteen_and_masked(context: BuildContext) -> None:
    prepared = prepare(context, Sample("key", LETTERS[:20]))
    assert isinstance(prepared.tensor, dict)
    assert (prepared.bucket, prepared.geometry) == ("32", {"tokens": 22, "kept": 22})
    assert prepared.tensor["tokens"].shape == prepared.tensor["mask"].shape == (32,)
    assert prepared.tensor["mask"].tolist() == [1.0] * 22 + [0.0] * 10
    assert prepared.tensor["tokens"][22:].tolist() == [0] * 10


def test_a_long_text_keeps_its_end_token_and_says_what_was_cut(context: BuildContext) -> None:
    prepared = prepare(context, Sample("key", LETTERS * 2))
    assert isinstance(prepared.tensor, dict)
    assert prepared.geometry == {"tokens": 54, "kept": 40}
    assert prepared.tensor["tokens"].shape == (40,)
    assert (int(prepared.tensor["tokens"][0]), int(prepared.tensor["tokens"][-1])) == (1, 2)
    assert list(prepared.remarks) == [
        "cut to 40 tokens, the encoder's limit (modality.with.on_long: skip leaves them out)"
    ]
    assert not prepare(context, Sample("key", LETTERS)).remarks


@pytest.mark.parametrize(
    ("sample", "options", "message"),
    [
        (Sample("key", ""), {}, "empty"),
        (Sample("key", " \n"), {}, "empty"),
        (Sample("key", "x" * 100_000), {}, "100000 characters"),
        (Sample("key", "x" * 60), {"on_long": "skip"}, "62 tokens"),
        (Sample("key", b"\xff\xfe"), {}, "UTF-8"),
        (
            Sample("key", "", {"text": 3}),
            {"column": "text"},
            "the attribute 'text' is a number, not a text; name another",
        ),
        (
            Sample("key", "", {"text": True}),
            {"column": "text"},
            "the attribute 'text' is of type bool, not a text",
        ),
        (
            Sample("key", "", {"caption": "x", "text": None}),
            {"column": "text"},
            "the attribute 'text' is null, not a text",
        ),
        (
            Sample("key", "", {"label": "y", "caption": "x"}),
            {"column": "text"},
            "no attribute 'text'; attributes: caption, label",
        ),
    ],
)
def test_a_text_that_is_no_good_has_its_reason(
    context: BuildContext, sample: Sample, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(SampleError, match=message):
        prepare(context, sample, **options)


def test_an_empty_text_can_be_kept(context: BuildContext) -> None:
    assert prepare(context, Sample("key", ""), on_empty="encode").geometry == {
        "tokens": 2,
        "kept": 2,
    }


def test_an_encoder_without_a_tokenizer_is_refused() -> None:
    with pytest.raises(RecipeError, match="text-encoder"):
        TextModality(TextConfig(), BuildContext(input=InputSpec(channels=3)))
