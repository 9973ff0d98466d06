"""A decoder's forward and backward pass as CUDA graphs: thousands of small kernels by one launch each.

With a few short rows a step, a GPU waits for Python to launch the next kernel. Batches of a training job have one
shape, so the launches are recorded once (torch.cuda.make_graphed_callables) and replayed at every step: the same
kernels on the same numbers, hence the same adapter to the bit. That is checked on a batch before a graph is used at
all.
"""

import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

LONGEST_REASON = 80  # characters
LEAST_STEPS = 16  # recording takes as long as about ten steps
TENSORS = ("input_ids", "inputs_embeds", "position_ids", "attention_mask")
OF_THE_LOSS = ("labels", "shift_labels", "num_items_in_batch")  # handed down to a decoder, which has no use for them
BatchShape = tuple[tuple[str, tuple[int, ...]], ...]  # of a batch: what it holds, and the shapes


@contextmanager
def captured_decoder(decoder: Any) -> Iterator["CapturedDecoder"]:
    """While inside, the decoder in training replays what was recorded. For one on a GPU, without dropout."""
    before = vars(decoder).get("forward")
    captured = CapturedDecoder(decoder.forward, decoder)
    decoder.forward = captured
    try:
        yield captured
    finally:
        captured.release()
        del decoder.forward
        if before is not None:
            decoder.forward = before


class CapturedDecoder:
    """In place of a decoder's `forward`: a graph's where one was recorded for such a batch, else the plain one."""

    def __init__(self, plain: Callable[..., Any], decoder: Any) -> None:
        self.plain, self.decoder = plain, decoder
        self.graphs: dict[BatchShape, Any] = {}  # modules whose forward replays

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        import torch
        from transformers.modeling_outputs import BaseModelOutputWithPast

        asked = {name for name, value in kwargs.items() if value is not None and value is not False}
        learning = self.graphs and self.decoder.training and torch.is_grad_enabled()
        if learning and not args and asked <= {*TENSORS, *OF_THE_LOSS}:
            inputs = tensors_of(kwargs)
            if graph := self.graphs.get(kind_of(inputs)):
                return BaseModelOutputWithPast(last_hidden_state=graph(*inputs.values()))
        return self.plain(*args, **kwargs)

    def record(self, batch: Mapping[str, Any], trainable: list[Any], *, autocast: bool) -> str:
        """Make graphs for batches like this one. Returns why there are none, or nothing.

        trainable: parameters whose gradients are compared, with the hidden states, to those of the plain pass.
        """
        import torch

        inputs, plain = tensors_of(batch), self.plain
        names = tuple(inputs)

        class Decoder(torch.nn.Module):
            def __init__(self, decoder: Any) -> None:
                super().__init__()
                self.decoder = decoder  # whose parameters are the graph's inputs too

            def forward(self, *tensors: Any) -> Any:
                return plain(**dict(zip(names, tensors, strict=True)), use_cache=False).last_hidden_state

        module, sample = Decoder(self.decoder).train(), tuple(inputs.values())
        try:
            # A weight that autocast keeps from one call to the next would be missing in the graph.
            with torch.autocast("cuda", torch.bfloat16, enabled=autocast, cache_enabled=False), quiet():
                refuse_waiting(plain, inputs, trainable)
                wanted = outcome(module, sample, trainable)
                graph: Any = torch.cuda.make_graphed_callables(
                    module, tuple(tensor.clone() for tensor in sample), num_warmup_iters=1, allow_unused_input=True
                )
                found = outcome(graph, sample, trainable)
                same = all(torch.equal(one, other) for one, other in zip(wanted, found, strict=True))
        except (AssertionError, RuntimeError, TypeError, ValueError) as error:
            return f"no CUDA graph ({type(error).__name__}: {str(error)[:LONGEST_REASON]})"
        if not same:
            del graph.forward
            return "no CUDA graph (its numbers differ)"
        self.graphs[kind_of(inputs)] = graph
        return ""

    def release(self) -> None:
        """Give the graphs' memory back now: module and closure hold each other, so it would wait for a collection."""
        for graph in self.graphs.values():
            del graph.forward
        self.graphs.clear()


def tensors_of(batch: Mapping[str, Any]) -> dict[str, Any]:
    """What a graph takes of a batch, in a fixed order.

    A mask that masks nothing is left out: while a graph is recorded transformers cannot look into it, and would take
    other kernels than it takes for such a batch otherwise.
    """
    inputs = {name: batch[name] for name in TENSORS if batch.get(name) is not None}
    mask = inputs.get("attention_mask")
    if mask is not None and mask.dim() == 2 and bool(mask.all()):
        del inputs["attention_mask"]
    return inputs


def kind_of(inputs: Mapping[str, Any]) -> BatchShape:
    return tuple((name, tuple(tensor.shape)) for name, tensor in inputs.items())


def outcome(module: Callable[..., Any], sample: tuple[Any, ...], trainable: list[Any]) -> list[Any]:
    """Hidden states, and the gradients of their sum of squares; copies, since a graph writes over its own."""
    import torch

    hidden = module(*sample)
    gradients = torch.autograd.grad(hidden.float().square().sum(), trainable, allow_unused=True)
    return [hidden.detach().clone(), *(each.clone() for each in gradients if each is not None)]


def refuse_waiting(plain: Callable[..., Any], inputs: Mapping[str, Any], trainable: list[Any]) -> None:
    """Raise RuntimeError where the decoder waits for the GPU, to read a number say: that cannot be recorded.

    Found out beforehand, since a recording that fails leaves torch's random numbers on the GPU unusable (measured with
    torch 2.11: "Offset increment outside graph capture").
    """
    import torch

    batch, tokens = (inputs.get("input_ids", inputs.get("inputs_embeds"))).shape[:2]
    device = trainable[0].device
    # Only while nothing is recorded does transformers look into a mask of rows, or for packed rows without a mask.
    mask = inputs.get("attention_mask")
    if mask is None or mask.dim() == 2:
        mask = torch.ones(tokens, tokens, dtype=torch.bool, device=device).tril().expand(batch, 1, tokens, tokens)
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        hidden = plain(**{**inputs, "attention_mask": mask}, use_cache=False).last_hidden_state
        torch.autograd.grad(hidden.float().sum(), trainable, allow_unused=True)
    finally:
        torch.cuda.set_sync_debug_mode(before)


@contextmanager
def quiet() -> Iterator[None]:
    """Without torch's warnings that looking for waits is new, and that a recording has a stream of its own."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Synchronization debug mode")
        warnings.filterwarnings("ignore", message="The AccumulateGrad node's stream")
        yield
