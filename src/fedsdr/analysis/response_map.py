"""A map of responses: which are close in the model's hidden states. An illustration, not evidence."""

from collections.abc import Mapping, Sequence

from sklearn.manifold import TSNE

from fedsdr.analysis.alignment import VIEWS
from fedsdr.data.conversation import Conversation
from fedsdr.model.adapters import LoraModel
from fedsdr.model.loss import mean_states
from fedsdr.seeds import seed_for
from fedsdr.storage import Event


def response_map(
    model: LoraModel,
    views: Mapping[str, Mapping[str, Sequence[Conversation]]],
    batch_size: int,
    seed: int,
) -> list[Event]:
    """Place each response on a plane by t-SNE of its mean hidden state in the base model.

    The state of a response is the mean of the last layer's states over the positions that predict its tokens.
    Raw and rewritten responses are embedded together. Distances between distant groups mean nothing, and
    other seeds give other pictures.

    Paper: van der Maaten and Hinton, "Visualizing data using t-SNE", JMLR 9 (2008), 2579-2605.

    Args:
        model: No adapter is active.
        views: "raw" and "distilled" -> client -> conversations.
        batch_size: Conversations in one forward pass.
        seed: Seed of the layout.

    Returns:
        Records with view, client, x and y.
    """
    placed = [(view, client, text) for view in VIEWS for client, some in views[view].items() for text in some]
    texts = [text for _, _, text in placed]
    with model.inference(()):
        states = mean_states(model.base, texts, batch_size)
    places = TSNE(
        perplexity=min(30.0, (len(texts) - 1) / 3),
        init="pca",
        random_state=seed_for(seed, "map") % 2**32,
    ).fit_transform(states)
    return [
        {"view": view, "client": client, "x": float(x), "y": float(y)}
        for (view, client, _), (x, y) in zip(placed, places, strict=True)
    ]
