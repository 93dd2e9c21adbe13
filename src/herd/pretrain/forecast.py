"""The forecast, written down before the flagship is trained: members name this artifact among their inputs."""

from __future__ import annotations

from collections.abc import Mapping

from herd.artifact import Artifact, Draft
from herd.data.loader import derive_seed
from herd.evidence import Claim, write_claims
from herd.pretrain.plan import member_plan
from herd.recipe import Member, Pretrain, Scaling, Section
from herd.scaling.forecast import forecast
from herd.scaling.isoflop import Cell


class ForecastSettings(Section):
    seed: int
    scaling: Scaling
    pretrain: Pretrain
    member: list[Member]


def write_forecast(settings: ForecastSettings, inputs: Mapping[str, Artifact], out: Draft) -> None:
    """Stage: fit inputs["ladder"], forecast `scaling.forecast_flops`, and say what each member will be.

    Writes `forecast.json` and `recorded/members.json`: plans follow from the forecast and are not content, so that
    another member does not make the forecast another one. Raises HerdError where a minimum was not bracketed.
    """
    cells = [
        Cell(c["budget_flops"], c["parameters"], c["tokens"], c["loss"]) for c in inputs["ladder"].json("cells.json")
    ]
    found = forecast(
        cells,
        settings.scaling.forecast_flops,
        derive_seed(settings.seed, "forecast") % 2**32,
        settings.scaling.confidence,
    )
    vocab_size = inputs["shards"].json("shards.json")["vocab_size"]
    out.write_json("forecast.json", found.to_dict())
    members = {}
    claims = [
        Claim(
            "forecast.size-exponent",
            "exponent of the power law of compute-optimal size over FLOPs",
            found.size_law.exponent,
            "1",
            len(cells),
            "ladder cells",
            *found.exponent_interval,
            found.confidence,
            "parametric bootstrap of the cells",
        )
    ]
    for member in settings.member:
        plan = member_plan(settings.scaling, settings.pretrain, member, vocab_size, found)
        assert plan is not None
        size = plan.config.matmul_parameters
        members[member.name] = {"parameters": plan.config.parameters, "tokens": plan.tokens, "flops": plan.flops}
        if member.size == "forecast" and member.tokens == "optimal":
            loss, shift = found.loss_of_size(size), found.loss_of_size(size) - found.loss
            members[member.name]["loss"] = loss
            claims.append(
                Claim(
                    f"{member.name}.forecast.loss",
                    f"{member.name}'s held-out loss after initial pre-training, forecast before it was trained",
                    loss,
                    "nats/token",
                    len(cells),
                    "ladder cells",
                    found.loss_interval.low + shift,
                    found.loss_interval.high + shift,
                    found.confidence,
                    "parametric bootstrap of the cells",
                )
            )
    out.write_json("recorded/members.json", members)
    write_claims(out.folder / "claims.json", claims)
