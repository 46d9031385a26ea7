"""Figures of training, of searches and of the learned model; each function returns a Matplotlib ``Figure``."""

import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure
from scipy.stats import trim_mean

from sb3_muzero.actions.base import Actions
from sb3_muzero.analysis.diagnostics import ModelErrors
from sb3_muzero.analysis.search_tree import candidate_names, node_positions, principal_variation
from sb3_muzero.models.decoder import psnr
from sb3_muzero.search import SearchOutput

COLOURS = ("#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#444444")  # Okabe-Ito
FOUND, SEEN, PRIOR = COLOURS[0], COLOURS[1], "0.6"
LETTER_INCHES = 0.055  # width of a letter in a search tree


def new_figure(width: float, height: float, rows: int = 1, columns: int = 1) -> tuple[Figure, Any]:
    """
    :param width: In inches
    :param height: In inches
    :param rows: Rows of axes
    :param columns: Columns of axes
    :return: A figure of no window and no global state, and its axes, shape ``[rows, columns]`` unless there is one
    """
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False)
    for ax in axes.flat:
        ax.grid(color="0.92")
        ax.set_axisbelow(True)
        ax.spines[["top", "right"]].set_visible(False)
    return figure, axes if axes.size > 1 else axes[0, 0]


def to_png(figure: Figure) -> bytes:
    """
    :param figure: Figure
    :return: It as a PNG
    """
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return buffer.getvalue()


def plot_learning_curves(
    curves: Mapping[str, tuple[Sequence[float], np.ndarray]],
    threshold: float | None = None,
    title: str = "",
    samples: str = "seeds",
) -> Figure:
    """
    Interquartile means over seeds, with 95 % bootstrap intervals (Agarwal et al., https://arxiv.org/abs/2108.13264).

    :param curves: For each label the environment steps, shape ``[T]``, and the returns, shape ``[seeds, T]``
    :param threshold: Return to mark
    :param title: Title
    :param samples: What the mean is taken over, for the legend, if not seeds
    :return: The figure
    :raises ValueError: for returns of another shape
    """
    figure, ax = new_figure(7, 4.2)
    if threshold is not None:
        ax.axhline(threshold, color="0.55", linewidth=1, linestyle="--", label=f"threshold {threshold:g}")
    for (label, (steps, returns)), colour in zip(curves.items(), COLOURS * len(curves), strict=False):
        returns = np.asarray(returns, dtype=np.float64)
        if returns.ndim != 2 or returns.shape[1] != len(steps):
            raise ValueError(f"`curves[{label!r}]` must have returns of shape [seeds, {len(steps)}], got {returns.shape}")
        count = len(returns)
        resampled = np.random.default_rng(0).integers(count, size=(2000, count))
        bootstrap = trim_mean(returns[resampled], 0.25, axis=1)
        mean = trim_mean(returns, 0.25, axis=0)
        ax.plot(steps, mean, color=colour, linewidth=2, label=f"{label} ({count} {samples})")
        ax.fill_between(steps, *np.quantile(bootstrap, (0.025, 0.975), axis=0), color=colour, alpha=0.18, linewidth=0)
    ax.set(xlabel="environment steps", ylabel="evaluation return")
    ax.set_xlim(left=0)
    ax.set_title(title, fontsize=11, loc="left")
    ax.xaxis.set_major_formatter(lambda value, _: f"{value / 1000:g}k" if value else "0")
    figure.legend(frameon=False, loc="outside lower center", ncols=4)
    return figure


def plot_search_tree(
    search: SearchOutput, index: int = 0, action_names: Sequence[str] | None = None, actions: Actions | None = None
) -> Figure:
    """
    The tree of one decision. The size of a node shows its visits, its colour its value; the line of play that the search
    expects is highlighted. Nodes with several visits are labelled with action, visits, Q value, reward and prior.

    :param search: Result of a search
    :param index: Which of its decisions
    :param action_names: Names of the actions, by default their indices, or the candidates themselves where these were drawn
    :param actions: ``model.policy.actions``, to show candidates as the environment gets them; by default as the networks do
    :return: The figure
    """
    tree = search.tree
    visits, depths = tree.node_visits[index], tree.node_depths[index]
    expected = principal_variation(search, index)
    order, height = node_positions(tree.children_index[index])
    parents = {0, *tree.parents[index, order[1:]]}
    names = {parent: candidate_names(search, index, parent, action_names, actions) for parent in parents}
    labels = {}
    for node in order[1:]:
        parent, action = tree.parents[index, node], tree.action_from_parent[index, node]
        labels[node] = names[parent][action]
        if visits[node] > 1 or node in expected or parent == 0:
            at = index, parent, action
            labels[node] += (
                f"  n {visits[node]}  Q {tree.children_qvalues[at]:.3g}  r {tree.children_rewards[at]:.2g}"
                f"  p {tree.children_prior_probs[at]:.0%}"
            )
    column = max(2.1, LETTER_INCHES * max(map(len, labels.values())))
    figure, ax = new_figure(2.2 + column * (depths.max() + 1), max(3.0, 0.34 * (height.max() + 1) + 0.8))
    ax.grid(False)
    ax.invert_yaxis()
    ax.set_yticks([])
    ax.spines["left"].set_visible(False)
    ax.set_xticks(range(depths.max() + 1))
    ax.set_xlabel("imagined steps")
    lines, colours, widths = [], [], []
    for node in order[1:]:
        parent = tree.parents[index, node]
        lines.append([(depths[parent], height[parent]), (depths[node], height[node])])
        colours.append(FOUND if node in expected else "0.75")
        widths.append(0.6 + 3.4 * visits[node] / visits[0])
    ax.add_collection(LineCollection(lines, colors=colours, linewidths=widths, zorder=1))
    values = tree.node_values[index]
    norm = Normalize(values[order].min(), max(values[order].max(), values[order].min() + 1e-9))
    dots = ax.scatter(
        depths[order], height[order], s=24 + 260 * visits[order] / visits[0], c=values[order], cmap="viridis", norm=norm,
        edgecolors=[FOUND if node in expected else "white" for node in order], linewidths=1.2, zorder=2,
    )  # fmt: skip
    figure.colorbar(dots, ax=ax, label="value", shrink=0.6, aspect=30)
    for node, label in labels.items():
        ax.annotate(
            label, (depths[node], height[node]), xytext=(7, 5), textcoords="offset points", fontsize=7,
            color=FOUND if node in expected else "0.25",
        )  # fmt: skip
    ax.set_xlim(-0.3, depths.max() + 1.0)
    played = names[0][search.action[index]]
    ax.set_title(
        f"{visits[0] - 1} simulations, value {search.improved_value[index]:.4g}, plays {played}; n visits, r reward, p prior",
        fontsize=10, loc="left",
    )  # fmt: skip
    return figure


def plot_policies(
    search: SearchOutput, index: int = 0, action_names: Sequence[str] | None = None, actions: Actions | None = None
) -> Figure:
    """
    Prior, visits and improved policy of one decision, side by side, with the Q values of visited actions.

    :param search: Result of a search
    :param index: Which of its decisions
    :param action_names: Names of the actions, by default their indices, or the candidates themselves where these were drawn
    :param actions: See ``plot_search_tree``
    :return: The figure
    """
    num_actions, names = search.action_weights.shape[1], candidate_names(search, index, 0, action_names, actions)
    visits = search.visit_counts[index]
    bars = {
        "prior": (search.tree.children_prior_probs[index, 0], PRIOR),
        "visits": (visits / visits.sum(), SEEN),
        "improved policy": (search.action_weights[index], FOUND),
    }
    figure, ax = new_figure(max(4.5, 1.0 + 0.9 * num_actions), 3.2)
    for i, (label, (shares, colour)) in enumerate(bars.items()):
        ax.bar(np.arange(num_actions) + 0.27 * (i - 1), shares, width=0.25, color=colour, label=label)
    labels = [
        f"{name}\nQ {q:.3g}" if n > 0 else f"{name}\nunvisited"
        for name, q, n in zip(names, search.qvalues[index], visits, strict=True)
    ]
    ax.set_xticks(range(num_actions), labels)
    ax.set(ylabel="share", ylim=(0, 1))
    figure.legend(frameon=False, loc="outside upper center", ncols=3)
    return figure


def plot_model_errors(timesteps: Sequence[int], errors: Sequence[ModelErrors]) -> Figure:
    """
    Errors of the model by unroll depth over training, as ``DiagnosticsCallback`` records them.

    :param timesteps: Environment steps of the measurements, shape ``[T]``
    :param errors: The measurements, ``T`` of them
    :return: The figure
    :raises ValueError: without measurements
    """
    if len(errors) == 0:
        raise ValueError("`errors` must hold at least one measurement: did the run take `log_freq` steps?")
    units = {"reward": "reward units", "value": "reward units", "policy": "nats", "consistency": "1 - cosine"}
    figure, axes = new_figure(11, 2.8, columns=4)
    for ax, (name, unit) in zip(axes[0], units.items(), strict=True):
        by_depth = np.stack([getattr(measured, name) for measured in errors]).T
        first = 0 if name in ("value", "policy") else 1
        known = by_depth[np.isfinite(by_depth) & (by_depth > 0)]
        low, high = (known.min(), known.max()) if len(known) > 0 else (1e-3, 1.0)
        low, high = max(low, high * 1e-4), max(high, low * 1.01)
        edges = np.array([*timesteps, timesteps[-1] + (timesteps[-1] - timesteps[-2] if len(timesteps) > 1 else 1)])
        depths = np.arange(first, first + len(by_depth) + 1) - 0.5
        mesh = ax.pcolormesh(edges, depths, np.maximum(by_depth, low), norm=LogNorm(low, high), cmap="magma")
        ax.set_title(name, fontsize=10, loc="left")
        ax.set_yticks(range(first, first + len(by_depth)))
        ax.set_xlabel("environment steps")
        ax.xaxis.set_major_formatter(lambda value, _: f"{value / 1000:g}k" if value else "0")
        ax.grid(False)
        figure.colorbar(mesh, ax=ax, label=unit)
    axes[0, 0].set_ylabel("imagined steps")
    return figure


def plot_value_calibration(values: np.ndarray, returns: np.ndarray) -> Figure:
    """
    Root values against the discounted returns that followed. Calibrated values lie on the diagonal.

    :param values: Shape ``[N]``
    :param returns: Shape ``[N]``
    :return: The figure
    """
    figure, ax = new_figure(4.6, 4.2)
    low, high = min(values.min(), returns.min()), max(values.max(), returns.max())
    ax.plot([low, high], [low, high], color="0.6", linewidth=1, linestyle="--", label="calibrated")
    ax.scatter(values, returns, s=6, alpha=0.25, color=SEEN, linewidths=0)
    groups = np.array_split(np.argsort(values), min(10, len(values)))
    means = np.array([(values[group].mean(), returns[group].mean()) for group in groups])
    ax.plot(*means.T, "o-", color=FOUND, label="means of ten equal groups")
    correlation = np.corrcoef(values, returns)[0, 1] if values.std() > 0 and returns.std() > 0 else float("nan")
    ax.set_title(f"bias {(values - returns).mean():.3g}, correlation {correlation:.2f}", fontsize=10, loc="left")
    ax.set(xlabel="root value", ylabel="discounted return that followed")
    ax.legend(frameon=False)
    return figure


def plot_latent_map(latents: np.ndarray, values: np.ndarray) -> Figure:
    """
    Latents along the two directions in which they differ most (principal components), coloured by value.

    :param latents: Shape ``[N, latent_dim]``
    :param values: Shape ``[N]``
    :return: The figure
    """
    centred = latents - latents.mean(0)
    _, singular, directions = np.linalg.svd(centred, full_matrices=False)
    shares = singular**2 / max((singular**2).sum(), np.finfo(np.float64).tiny)
    plane = centred @ directions[:2].T
    figure, ax = new_figure(5.2, 4.2)
    dots = ax.scatter(plane[:, 0], plane[:, -1], c=values, s=8, cmap="viridis", linewidths=0)
    figure.colorbar(dots, ax=ax, label="value")
    ax.set(xlabel=f"first component ({shares[0]:.0%} of the variance)")
    if len(shares) > 1:
        ax.set(ylabel=f"second component ({shares[1]:.0%})")
    return figure


def plot_imagined_episode(real: Mapping[str, np.ndarray], imagined: Mapping[str, np.ndarray], starts: Sequence[int]) -> Figure:
    """
    An episode, and the model's open-loop predictions from several of its steps, given only the actions that were taken.

    :param real: For each quantity its value at every step, shape ``[T]``
    :param imagined: For each quantity its values from each start on, shape ``[len(starts), depth]``
    :param starts: Steps from which it was imagined
    :return: The figure
    """
    figure, axes = new_figure(9, 0.6 + 1.7 * len(real), rows=len(real))
    colours = colormaps["plasma"](np.linspace(0.1, 0.8, len(starts)))
    for ax, name in zip(axes[:, 0], real, strict=True):
        ax.plot(real[name], color="0.35", linewidth=1.4, label="real")
        for i, (start, colour) in enumerate(zip(starts, colours, strict=True)):
            steps = start + np.arange(imagined[name].shape[1])
            ax.plot(steps, imagined[name][i], color=colour, linewidth=1.6, label="imagined" if i == 0 else None)
            ax.plot(start, imagined[name][i, 0], "o", color=colour, markersize=4)
        ax.set_ylabel(name)
    axes[-1, 0].set_xlabel("step of the episode")
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, frameon=False, loc="outside upper center", ncols=2)
    return figure


def plot_imagined_frames(real: np.ndarray, imagined: np.ndarray, depths: Sequence[int]) -> Figure:
    """
    Real frames, above those that a decoder reconstructs from imagined latents, with the peak signal-to-noise ratio of these
    and of the first real frame.

    :param real: Shape ``[N, height, width, 3]``, from 0 to 1
    :param imagined: The same
    :param depths: How many steps ahead each is, shape ``[N]``
    :return: The figure
    """
    figure, axes = new_figure(1.3 * len(real) + 0.4, 3.5, rows=2, columns=len(real))
    for row, frames in enumerate((real, imagined)):
        for column, (depth, frame) in enumerate(zip(depths, frames, strict=True)):
            ax: Axes = axes[row, column]
            ax.imshow(np.clip(frame, 0, 1), interpolation="nearest")
            ax.grid(False)
            ax.set_xticks([])
            ax.set_yticks([])
            ax.spines[:].set_visible(False)
            if row == 0:
                ax.set_title(f"{depth} steps" if depth > 0 else "now", fontsize=9)
            else:
                repeated = f"\nfirst frame {psnr(real[0], real[column]):.1f}" if depth > 0 else ""
                ax.set_xlabel(f"{psnr(frame, real[column]):.1f} dB{repeated}", fontsize=8)
    axes[0, 0].set_ylabel("real")
    axes[1, 0].set_ylabel("imagined")
    return figure
