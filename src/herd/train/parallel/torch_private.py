"""All that herd uses of torch's private interface, in one place, for the versions of torch in which it was checked.

Pipelines run on torch's `_PipelineScheduleRuntime`, which sends, receives, gathers and reduces around any order of
micro-batches; `Stage` adds what the paper frees early (3.3.2). The rest are small functions.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any, get_args

import torch
from torch import Tensor, nn
from torch.distributed import ProcessGroup, Work, _functional_collectives
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule
from torch.distributed.pipelining import PipelineStage
from torch.distributed.pipelining import schedules as torch_schedules

from herd.console import HerdError
from herd.train.parallel.schedule import Action, Kind, Order

KNOWN = ("2.13",)  # checked by the tests of train/parallel; others may work, and lose gradients silently
MOST_SENDS = 4  # of a stage at once; then the oldest is waited for. gloo only knows that a send has ended by waiting


def check_torch() -> None:
    """Raises HerdError unless the installed torch is one whose private functions are known."""
    if ".".join(torch.__version__.split(".")[:2]) not in KNOWN:
        raise HerdError(
            f"training over several ranks needs torch {' or '.join(KNOWN)}; {torch.__version__} is installed"
        )


def flattened(mesh: DeviceMesh, names: Sequence[str], name: str) -> DeviceMesh:
    """One dimension, called `name`, of several of a mesh; they need not be adjacent (data and context around PP)."""
    check_torch()
    return mesh[tuple(names)]._flatten(name)


def sums_gradients(module: nn.Module) -> None:
    """Let FSDP add up gradients over its ranks without dividing: the loss is divided by the global count already.

    Sums are forced because gloo cannot scale while reducing (`Cannot use ReduceOp.PREMUL_SUM with Gloo`).
    """
    check_torch()
    for part in module.modules():
        if isinstance(part, FSDPModule):
            part.set_gradient_divide_factor(1.0)
            part.set_force_sum_reduction_for_comms(True)


def all_gather_sequence(tensor: Tensor, dim: int, group: ProcessGroup) -> Tensor:
    """The ranks' tensors side by side along `dim`; backward sums each rank's part of the gradient (reduce-scatter)."""
    check_torch()
    return _functional_collectives.all_gather_single_autograd(tensor.contiguous(), dim, group)


class _WithoutStorage(torch.autograd.Function):
    """A tensor of the same shape and place in the graph that holds one element: what backward starts from."""

    @staticmethod
    def forward(ctx: Any, output: Tensor) -> Tensor:
        return torch.empty_strided(output.shape, (0,) * output.dim(), dtype=output.dtype, device=output.device)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        return gradient


class Stage(PipelineStage):
    """torch's stage, holding less: buffers live from their message to the backward that needs them.

    torch allocates all micro-batches' buffers of states and gradients before the first step and keeps them, and keeps
    every state sent until the end of the step. Here a buffer is made when its message is asked for and dropped after
    the backward of its micro-batch (in evaluation after the forward), and a state that was sent is dropped when the
    message has gone, unless the network's own graph needs it.
    """

    def __init__(
        self, module: nn.Module, index: int, stages: int, device: torch.device, group: ProcessGroup, state: Tensor
    ) -> None:
        """`state`: a tensor on the meta device like what stages hand on, (rows, T, D); stage 0 gets tokens instead."""
        enters = torch.empty(state.shape[:1], dtype=torch.int64, device="meta") if index == 0 else state
        super().__init__(module, index, stages, device, input_args=enters, output_args=state, group=group)
        self._state = state
        self._sends: list[tuple[Work, Tensor]] = []

    def _setup_forward_recv_info(self, num_microbatches: int, has_backward: bool) -> None:
        super()._setup_forward_recv_info(1, has_backward)
        for info in self.args_recv_info[0]:
            info.buffer = None
        for micro in range(1, num_microbatches):
            self.args_recv_info[micro] = tuple(copy.copy(info) for info in self.args_recv_info[0])

    def _create_grad_recv_info(self, act_send_info: dict[int, Any]) -> tuple[Any, ...]:
        infos = super()._create_grad_recv_info(act_send_info)
        for info in infos:
            info.buffer = None
        return infos

    def _allocate(self, infos: tuple[Any, ...]) -> None:
        for info in infos:
            meta = info.tensor_meta
            info.buffer = torch.empty_strided(meta.shape, meta.stride, dtype=meta.dtype, device=self.device)

    def get_fwd_recv_ops(self, fwd_chunk_id: int) -> list[Any]:
        self._allocate(self.args_recv_info[fwd_chunk_id])
        return super().get_fwd_recv_ops(fwd_chunk_id)

    def get_bwd_recv_ops(self, bwd_chunk_id: int) -> list[Any]:
        if self.has_backward:
            self._allocate(self.grad_recv_info[bwd_chunk_id])
        return super().get_bwd_recv_ops(bwd_chunk_id)

    def get_fwd_send_ops(self, fwd_chunk_id: int) -> list[Any]:
        self._send(super().get_fwd_send_ops(fwd_chunk_id))
        if not self.has_backward:
            del self.fwd_cache[fwd_chunk_id]
            return []
        outputs, inputs = self.fwd_cache[fwd_chunk_id]
        stand_ins = tuple(_WithoutStorage.apply(output) if output.requires_grad else output for output in outputs)
        self.fwd_cache[fwd_chunk_id] = (stand_ins, inputs)
        return []  # sent: torch would hold the messages until the end of the step

    def get_bwd_send_ops(self, bwd_chunk_id: int) -> list[Any]:
        self._send(super().get_bwd_send_ops(bwd_chunk_id))
        return []

    def _send(self, messages: list[Any]) -> None:
        """Waiting cannot deadlock: receipts don't block, and all ranks see messages in one order (_add_send_recv)."""
        for message in messages:
            message.tensor = message.tensor.contiguous()  # the gradient of a sum is one number seen many times
        works = torch_schedules._batch_p2p(messages)
        self._sends += [(work, message.tensor) for work, message in zip(works, messages, strict=True)]
        self._sends = [(work, tensor) for work, tensor in self._sends if not work.is_completed()]
        while len(self._sends) > MOST_SENDS:
            self._sends.pop(0)[0].wait()

    def finish_sends(self) -> None:
        while self._sends:
            self._sends.pop(0)[0].wait()

    def forward_one_chunk(
        self, fwd_chunk_id: int, args: Any, kwargs: dict[str, Any] | None = None, save_forward_output: bool = True
    ) -> Any:
        self.submod.micro = fwd_chunk_id  # pyright: ignore[reportAttributeAccessIssue, reportArgumentType]
        output = super().forward_one_chunk(fwd_chunk_id, args, kwargs, save_forward_output)
        if not self.is_last and (output.shape, output.dtype) != (self._state.shape, self._state.dtype):
            raise ValueError(
                f"stage {self.stage_index} returned {output.dtype} {tuple(output.shape)}; "
                f"all stages but the last return what stage 0 does, {self._state.dtype} {tuple(self._state.shape)}"
            )
        if not self.has_backward:
            self._release(self.args_recv_info[fwd_chunk_id])
            if self.is_last or self._is_same_rank(self.stage_index + 1):  # nothing will be sent
                del self.fwd_cache[fwd_chunk_id]
        return output

    def backward_one_chunk(
        self, bwd_chunk_id: int, loss: Any = None, full_backward: bool = True, last_backward: bool = False
    ) -> None:
        super().backward_one_chunk(bwd_chunk_id, loss, full_backward, last_backward)
        if self.has_backward:
            self._release(self.args_recv_info[bwd_chunk_id])
            self._release(self.grad_recv_info[bwd_chunk_id])
            if loss is not None and not loss._is_view():
                loss.detach_()  # torch keeps it to the end of the step, and with its graph the stage's input

    def backward_weight_one_chunk(self, bwd_chunk_id: int, last_backward: bool = False) -> None:
        """Under FSDP in bfloat16 torch would add up these gradients in bfloat16; whole backwards are cast by hooks."""
        super().backward_weight_one_chunk(bwd_chunk_id, last_backward)
        for part in self.submod.modules():
            if isinstance(part, FSDPModule):
                for weight in (w for group in part._get_fsdp_state()._fsdp_param_groups for w in group.fsdp_params):
                    weight.accumulate_unsharded_grad_if_needed()
                    weight.to_accumulated_grad_if_needed()

    def _release(self, infos: tuple[Any, ...]) -> None:
        for info in infos:
            info.buffer = None


def runtime(
    stages: list[Stage], micros: int, loss: Callable[[Tensor, Tensor], Tensor], order: Order, homes: Sequence[int]
) -> torch_schedules._PipelineScheduleRuntime:
    """torch's runtime for an order of ours; `homes` is the rank of each stage.

    FSDP gathers the weights of all stages of a rank before they are first used and keeps them to the end of the step
    (paper: no reshard after forward; torch's own limit of three stages would gather again and again). A stage's
    gradients are reduced once, after its last backward. Losses are not averaged: `loss` comes scaled.
    """
    check_torch()
    made = torch_schedules._PipelineScheduleRuntime(stages, micros, loss_fn=loss, scale_grads=False)
    made.stage_index_to_group_rank = dict(enumerate(homes))
    for stage in stages:
        stage.stage_index_to_group_rank = made.stage_index_to_group_rank
    actions = {
        rank: torch_schedules._add_reduce_grad(
            torch_schedules._add_unshard_reshard([_torch_action(a) for a in row], max_active_stages=len(homes)),  # pyright: ignore[reportArgumentType]
            micros,
        )
        for rank, row in enumerate(order)
    }
    made.pipeline_order_with_comms = torch_schedules._add_send_recv(actions, lambda stage: homes[stage], len(homes))  # pyright: ignore[reportArgumentType]
    return made


def _torch_action(action: Action) -> torch_schedules._Action:
    kind = torch_schedules._ComputationType.from_str(action.kind)
    return torch_schedules._Action(action.stage, kind, action.micro)


class _Outline:
    """What torch's schedules ask of a stage when they only work out an order."""

    def __init__(self, index: int, pp: int, stages: int) -> None:
        self.stage_index, self.group_rank, self.group_size, self.num_stages = index, 0, pp, stages
        self.submod, self.is_last, self.has_backward = None, index == stages - 1, True
        self.stage_index_to_group_rank: dict[int, int] = {}


def torch_order(name: str, pp: int, stages_per_rank: int, micros: int) -> Order:
    """The order of a schedule class of torch, by the name that torch's `get_schedule_class` knows.

    Where torch overlaps a forward with a backward (DualPipeV), they follow each other. Raises ValueError for a number
    of micro-batches that torch refuses.
    """
    check_torch()
    stages = pp * stages_per_rank
    outlines: list[Any] = [_Outline(index, pp, stages) for index in range(stages_per_rank)]
    schedule: Any = torch_schedules.get_schedule_class(name)(outlines, micros)
    order: Order = []
    for rank in range(pp):
        actions = [action for action in schedule.pipeline_order[rank] if action is not None]
        parts = [part for action in actions for part in (action.sub_actions or (action,))]
        order.append([Action(_kind(part), part.stage_index, part.microbatch_index) for part in parts])
    return order


def _kind(action: Any) -> Kind:
    for kind in get_args(Kind):
        if action.computation_type == torch_schedules._ComputationType.from_str(kind):
            return kind
    raise RuntimeError(f"an action {action} in an order of torch {torch.__version__}")


def refuse_compiled(module: nn.Module, schedule: str) -> None:
    """Raises HerdError for a compiled module: its backward cannot be run in halves."""
    for part in module.modules():
        if isinstance(part, torch._dynamo.OptimizedModule) or part._compiled_call_impl is not None:
            raise HerdError(f"[compute] pipeline.schedule '{schedule}' runs backward in halves: set compile = false")
