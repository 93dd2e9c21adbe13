"""Curation with a judge: the stage `curate` where the recipe names a model to judge quality."""

from __future__ import annotations

from collections.abc import Mapping

from herd.artifact import Artifact, Draft
from herd.console import HerdError
from herd.data.curate import CurateSettings, curate
from herd.data.judged import Teacher
from herd.infer.remote import RemoteGenerator
from herd.model.formats.tokenizer_json import load_any_tokenizer


def curate_judged(settings: CurateSettings, inputs: Mapping[str, Artifact], out: Draft) -> None:
    """Curate inputs["sources"] with the judge of `data.quality.judge`, any OpenAI-compatible server.

    Raises HerdError as `curate` does, and where the server can't be reached or its tokenizer not be read.
    """
    judge = settings.data.quality.judge
    if judge is None:
        raise HerdError("data.quality.judge is missing: there is nobody to judge")
    tokenizer = load_any_tokenizer(settings.base / judge.tokenizer)
    generator = RemoteGenerator(judge.base_url, judge.model, tokenizer)
    curate(settings, inputs, out, Teacher(generator, tokenizer, judge.model))
