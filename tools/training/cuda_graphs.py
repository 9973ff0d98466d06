"""A decoder's forward and backward pass as CUDA graphs.

With a few short rows per step, a GPU waits for Python to launch its kernels. The batches of a training job have one
shape, so `torch.cuda.make_graphed_callables` records the launches once and replays them at each step. The kernels and
numbers are the same, so the adapter is the same to the bit; each graph is compared with the plain pass before its use.
"""

import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

LONGEST_REASON = 80  # characters
LEAST_STEPS = 16  # recording takes about as long as ten steps
TENSORS = ("input_ids", "inputs_embeds", "position_ids", "attention_mask")
OF_THE_LOSS = ("labels", "shift_labels", "num_items_in_batch")  # passed to a decoder, which ignores them
BatchShape = tuple[tuple[str, tuple[int, ...]], ...]  # names and shapes of a batch's tensors


@contextmanager
def captured_decoder(decoder: Any) -> Iterator["CapturedDecoder"]:
    """Let the decoder replay recorded graphs in training. It must be on a GPU and have no dropout."""
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
    """Replaces a decoder's `forward`: replays the graph of the batch's shape, or calls the plain forward."""

    def __init__(self, plain: Callable[..., Any], decoder: Any) -> None:
        self.plain, self.decoder = plain, decoder
        self.graphs: dict[BatchShape, Any] = {}

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        import torch
        from transformers.modeling_outputs import BaseModelOutputWithPast

        asked = {name for name, value in kwargs.items() if value is not None and value is not False}
        learning = self.graphs and self.decoder.training and torch.is_grad_enabled()
        if learning and not args and asked <= {*TENSORS, *OF_THE_LOSS}:
            inputs = _tensors_of(kwargs)
            if graph := self.graphs.get(_shape_of(inputs)):
                return BaseModelOutputWithPast(last_hidden_state=graph(*inputs.values()))
        return self.plain(*args, **kwargs)

    def record(self, batch: Mapping[str, Any], trainable: list[Any], *, autocast: bool) -> str:
        """Record a graph for batches of this shape.

        Args:
            batch: A batch on the GPU.
            trainable: Parameters whose gradients are compared with those of the plain pass, as the hidden states are.
            autocast: Whether to compute in bfloat16 by autocast.

        Returns:
            Why there is no graph; empty if there is one.
        """
        import torch

        inputs, plain = _tensors_of(batch), self.plain
        names = tuple(inputs)

        class Decoder(torch.nn.Module):
            def __init__(self, decoder: Any) -> None:
                super().__init__()
                self.decoder = decoder  # its parameters are inputs of the graph

            def forward(self, *tensors: Any) -> Any:
                return plain(**dict(zip(names, tensors, strict=True)), use_cache=False).last_hidden_state

        module, sample = Decoder(self.decoder).train(), tuple(inputs.values())
        try:
            # A weight that autocast caches from one call to the next would be missing in the graph.
            with torch.autocast("cuda", torch.bfloat16, enabled=autocast, cache_enabled=False), _quiet():
                _refuse_waiting(plain, inputs, trainable)
                wanted = _states_and_gradients(module, sample, trainable)
                graph: Any = torch.cuda.make_graphed_callables(
                    module, tuple(tensor.clone() for tensor in sample), num_warmup_iters=1, allow_unused_input=True
                )
                found = _states_and_gradients(graph, sample, trainable)
                same = all(torch.equal(one, other) for one, other in zip(wanted, found, strict=True))
        except (AssertionError, RuntimeError, TypeError, ValueError) as error:
            return f"no CUDA graph ({type(error).__name__}: {str(error)[:LONGEST_REASON]})"
        if not same:
            del graph.forward
            return "no CUDA graph (its numbers differ)"
        self.graphs[_shape_of(inputs)] = graph
        return ""

    def release(self) -> None:
        """Free the graphs' memory now: module and closure refer to each other, so it would wait for the collector."""
        for graph in self.graphs.values():
            del graph.forward
        self.graphs.clear()


def _tensors_of(batch: Mapping[str, Any]) -> dict[str, Any]:
    """Select a graph's inputs from a batch, in a fixed order.

    A mask that masks nothing is left out: transformers cannot read it while a graph is recorded, and would choose
    other kernels than it chooses for this batch otherwise.
    """
    inputs = {name: batch[name] for name in TENSORS if batch.get(name) is not None}
    mask = inputs.get("attention_mask")
    if mask is not None and mask.dim() == 2 and bool(mask.all()):
        del inputs["attention_mask"]
    return inputs


def _shape_of(inputs: Mapping[str, Any]) -> BatchShape:
    return tuple((name, tuple(tensor.shape)) for name, tensor in inputs.items())


def _states_and_gradients(module: Callable[..., Any], sample: tuple[Any, ...], trainable: list[Any]) -> list[Any]:
    """Copy the hidden states and the gradients of their sum of squares; a graph overwrites its own."""
    import torch

    hidden = module(*sample)
    gradients = torch.autograd.grad(hidden.float().square().sum(), trainable, allow_unused=True)
    return [hidden.detach().clone(), *(each.clone() for each in gradients if each is not None)]


def _refuse_waiting(plain: Callable[..., Any], inputs: Mapping[str, Any], trainable: list[Any]) -> None:
    """Raise RuntimeError if the decoder waits for the GPU, for example to read a number: a graph cannot record that.

    Found out beforehand, since a recording that fails leaves torch's random numbers on the GPU unusable (measured with
    torch 2.11: "Offset increment outside graph capture").
    """
    import torch

    batch, tokens = (inputs.get("input_ids", inputs.get("inputs_embeds"))).shape[:2]
    device = trainable[0].device
    # transformers reads a two-dimensional mask, or looks for packed rows without one, only while nothing is recorded.
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
def _quiet() -> Iterator[None]:
    """Hide torch's warnings that its detection of waits is new, and that a recording has a stream of its own."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Synchronization debug mode")
        warnings.filterwarnings("ignore", message="The AccumulateGrad node's stream")
        yield
