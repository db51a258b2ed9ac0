"""Methods that were made for CLIP: Grad-ECLIP, MaskCLIP's value map, the decomposition of the image feature."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from legrad import relevance
from legrad.core import hooks, state
from legrad.core.attention import Attention
from legrad.core.memory import ran_out
from legrad.core.truth import at_least_float32
from legrad.errors import UnsupportedModelError
from legrad.methods import backward_rules
from legrad.methods.call import MethodInput
from legrad.methods.catalogue import about
from legrad.methods.method import Method
from legrad.methods.whole_pass import Pass, forward, layer_maps, patches_of
from legrad.models.anatomy import ViTAnatomy


def grad_eclip(call: MethodInput) -> Tensor:
    """Grad-ECLIP (Zhao et al., ICML 2024): E_j = max(0, sum over channels c of w_c lambda_j v_jc).

    o, q: head output and query of the token that the model's head reads, channels of all heads side by side, before
    the output projection; several such tokens are averaged before the positive part; of a pooler its query 0.
    w = dS/do: what a channel of o is worth to the score.
    v_j, k_j: value and key of patch j.
    lambda_j = cos(q, k_j), stretched to [0, 1] over the patches: the paper's loosened attention, in the place of the
    softmax that leaves most patches next to nothing.

    The sum over c of w_c v_jc is dS/dA at patch j, summed over heads, which is how it is computed here.
    """
    graph = forward(call)
    pooled = graph.anatomy.route == "pooler"
    attentions = [graph.pooler()] if pooled else [graph.attentions(layer) for layer in call.layers]
    rows: Tensor | slice = slice(0, 1) if pooled else graph.rows
    flat = [attention for layer in attentions for attention in layer]
    loosened = [_loosened(graph, attention, rows) for attention in flat]
    results = []
    for target in range(len(call.scores)):
        gradients = graph.required_gradients(target, [attention.output for attention in flat])
        maps = []
        for attention, gradient, similarity in zip(flat, gradients, loosened, strict=True):
            # w . v_j = dS/dA, summed over heads
            weighted = attention.sensitivity(gradient, rows).sum(1)[..., patches_of(graph.anatomy)]
            maps.append((similarity * weighted).mean(1).clamp(min=0).unflatten(-1, graph.anatomy.grid))
        results.append(torch.stack(maps, 1).unflatten(1, (len(attentions), -1)).mean(2))
    return torch.stack(results, 1)


GRAD_ECLIP = Method(
    **about("grad-eclip"),
    function=grad_eclip,
    needs="gradients",
    cost="1 backward pass per target",
    layers="last",
    per_layer=True,
)


def _loosened(graph: Pass, attention: Attention, rows: Tensor | slice) -> Tensor:
    """Cosine similarity of queries and patch keys over all heads, stretched to [0, 1]: (batch, rows, patches)."""
    if attention.query is None or attention.key is None:
        raise UnsupportedModelError(
            f"{type(graph.anatomy.tower).__name__} writes its attention out: the queries and keys that Grad-ECLIP "
            "needs cannot be seen"
        )
    query, key = (
        at_least_float32(tensor) if tensor.ndim == 4 else at_least_float32(tensor)[:, None]
        for tensor in (attention.query, attention.key)
    )
    q = F.normalize(query[:, :, rows].transpose(1, 2).flatten(2), dim=-1)
    k = F.normalize(key[:, :, patches_of(graph.anatomy)].transpose(1, 2).flatten(2), dim=-1)
    return relevance.min_max(q @ k.transpose(-2, -1), dims=1)


def value_map(call: MethodInput) -> Tensor:
    """MaskCLIP (Zhou et al., ECCV 2022): every patch's own score. Signed: similarities, or logits.

    In the last block A = 1, each token attends to itself alone, so that O = V; then the model's head reads each patch
    as if it were the whole image.

    Attentional poolers read a single patch, so that their attention hands on its value.
    """
    anatomy = call.anatomy
    if anatomy.keys_to_grid is not None:
        raise UnsupportedModelError(f"the tokens of {type(anatomy.tower).__name__} do not lie in one grid of patches")
    prefix = anatomy.num_prefix_tokens
    if anatomy.route == "pooler":
        if anatomy.num_prefix_keys > prefix:
            raise UnsupportedModelError(
                f"{type(anatomy.tower).__name__} adds a class token of its own in its pooler: no patch is read alone"
            )
        with hooks.record(anatomy.blocks) as outputs:
            call.output = anatomy.run(call.batch)
        last = outputs[-1]
    else:
        if anatomy.attention != "fused":
            raise UnsupportedModelError(
                f"{type(anatomy.tower).__name__} writes its attention out: the values of its last block cannot be seen"
            )
        last, count = hooks.forward_values_only(lambda: anatomy.run(call.batch), anatomy.blocks[-1])
        if count != anatomy.attentions or count != len(anatomy.explained_attentions):
            raise UnsupportedModelError(
                f"{type(anatomy.blocks[-1]).__name__} ran {count} attentions that are no plain ones: no value map"
            )
    tokens = anatomy.to_tokens(last)
    start = prefix if anatomy.route == "pooler" else anatomy.num_prefix_keys
    patches = relevance.on_grid(tokens.transpose(1, 2), start, anatomy.grid).flatten(2).transpose(1, 2)
    features = [_feature_of_each(anatomy.for_images([image]), tokens) for image, tokens in enumerate(patches)]
    maps = [call.scores_of(image, feature).T for image, feature in enumerate(features)]
    return torch.stack(maps).unflatten(-1, anatomy.grid)[:, :, None]


VALUE_MAP = Method(
    **about("maskclip"),
    function=value_map,
    needs="values",
    cost="1 forward pass, the head on every patch",
    signed=True,
)


def _feature_of_each(anatomy: ViTAnatomy, patches: Tensor) -> Tensor:
    """The native head on copies of each patch: (patches, dim) -> (patches, features)."""
    copies = at_least_float32(patches)[:, None].expand(-1, anatomy.num_prefix_tokens + 1, -1)
    native = anatomy.readouts["native"].function
    try:
        return state.InFloat(anatomy.tower, anatomy.blocks)(native, copies)
    except RuntimeError as error:
        if ran_out(error):
            raise
        raise UnsupportedModelError(
            f"the head of {type(anatomy.tower).__name__} reads the whole grid, not single patches: no value map"
        ) from error


def decomposition(call: MethodInput) -> Tensor:
    """TextSpan's decomposition (Gandelsman et al., ICLR 2024): each patch's direct contribution to the score. Signed.

    The image feature is a sum of what every block wrote into the residual stream. Patch j's part through attention in
    layer l is the sum over heads of P norm(A_j v_j W_o): straight through the final norm (its standard deviation held
    constant) and the projection P, later blocks left out. Its product with the text is A_j dS/dA_j once all other ways
    are cut. Layers are averaged, which is their sum but for a factor. Attentional poolers are decomposed alone, what
    follows their attention by its gradient.

    Raises:
        UnsupportedModelError: blocks that are no residual pre-norm blocks.
    """
    pooled = call.anatomy.route == "pooler"
    graph = forward(call, backward_rules.FROZEN_NORMS, cut=None if pooled else _is_norm, frozen_norm=True)
    if not pooled:
        _check_residual(graph)
    return layer_maps(graph, lambda a, g, patches: (a * g).sum((1, 2)))


DECOMPOSITION = Method(
    **about("textspan"),
    function=decomposition,
    needs="gradients",
    cost="1 backward pass per target through the residual stream alone",
    layers="all",
    per_layer=True,
    signed=True,
)


def _is_norm(module: nn.Module) -> bool:
    return "norm" in type(module).__name__.lower()


def _check_residual(graph: Pass) -> None:
    """With the branches of all blocks cut after their norms, a block's input and output have the same gradient, and
    attention still reaches the output."""
    refusal = UnsupportedModelError(
        f"{type(graph.anatomy.blocks[0]).__name__} is no residual block with norms in front of its branches: "
        "the image feature is no sum of the blocks' contributions"
    )
    blocks = range(len(graph.anatomy.blocks))
    tokens = [graph.tokens(layer, entering)[0] for layer in blocks for entering in (True, False)]
    heads = [attention.output for layer in graph.call.layers for attention in graph.attentions(layer)]
    if not all(tensor.requires_grad for tensor in (*tokens, *heads)):  # a norm after both branches was cut
        raise refusal
    for target in range(len(graph.call.scores)):
        gradients = graph.gradients(target, [*tokens, *heads])
        at_tokens, at_heads = gradients[: len(tokens)], gradients[len(tokens) :]
        pairs = zip(at_tokens[::2], at_tokens[1::2], strict=True)
        same = all(a is not None and b is not None and torch.allclose(a, b, rtol=1e-3, atol=1e-30) for a, b in pairs)
        if not same or any(gradient is None for gradient in at_heads):
            raise refusal
