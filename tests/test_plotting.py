"""Pictures show what they are told."""

import itertools

import numpy as np
import pytest
from conftest import tiny_envs, tiny_model
from matplotlib.figure import Figure

from sb3_muzero.analysis.diagnostics import ModelErrors
from sb3_muzero.analysis.plotting import (
    plot_imagined_episode,
    plot_imagined_frames,
    plot_latent_map,
    plot_learning_curves,
    plot_model_errors,
    plot_policies,
    plot_search_tree,
    plot_value_calibration,
)
from sb3_muzero.analysis.search_tree import principal_variation
from sb3_muzero.models.decoder import psnr, to_rgb
from sb3_muzero.search import RecurrentOutput, RootOutput, gumbel_muzero_search


@pytest.fixture(scope="module")
def search():
    """Three decisions of 50 simulations."""
    model = tiny_model(tiny_envs(3), num_simulations=50).learn(60)
    return model.policy.plan(model.replay_buffer.sample(3, unroll_steps=1, n_steps=1).observations[0], deterministic=True)


def texts(figure: Figure) -> list[str]:
    return [text.get_text() for ax in figure.axes for text in ax.texts]


def test_learning_curves():
    steps = [1_000, 2_000, 3_000]
    returns = np.array([[0.0, 1.0, 2.0], [1.0, 2.0, 3.0], [2.0, 3.0, 4.0], [90.0, 3.0, 4.0]])
    figure = plot_learning_curves({"MuZero": (steps, returns), "DQN": (steps, returns[:1] - 1)}, threshold=3.5, title="a task")
    ax = figure.axes[0]
    drawn = {line.get_label(): line for line in ax.lines}
    assert drawn.keys() == {"threshold 3.5", "MuZero (4 seeds)", "DQN (1 seeds)"}
    np.testing.assert_allclose(drawn["MuZero (4 seeds)"].get_ydata(), [1.5, 2.5, 3.5])
    band = ax.collections[0].get_paths()[0].vertices
    assert band[:, 1].min() == 0.0 and band[:, 1].max() > 40  # what four seeds can be redrawn as
    with pytest.raises(ValueError, match=r"`curves\['MuZero'\]` .* \[seeds, 2\], got \(4, 3\)"):
        plot_learning_curves({"MuZero": (steps[:2], returns)})


@pytest.mark.parametrize("index", [0, 1, 2])
def test_search_tree_has_all_nodes_where_they_belong(search, index):
    figure = plot_search_tree(search, index, action_names=["left", "stay", "right"])
    tree = search.tree
    ax = figure.axes[0]
    lines, dots = ax.collections
    visited = np.flatnonzero(tree.node_visits[index] > 0)
    assert len(dots.get_offsets()) == len(visited) == len(lines.get_segments()) + 1
    assert sorted(dots.get_offsets()[:, 0]) == sorted(tree.node_depths[index, visited])
    assert len({tuple(at) for at in np.asarray(dots.get_offsets())}) == len(visited), "one node hides another"
    for start, end in lines.get_segments():  # a child is one step further right
        assert end[0] == start[0] + 1
    said = texts(figure)
    assert len(said) == len(visited) - 1
    for action, name in enumerate(("left", "stay", "right")):
        visits, q = search.visit_counts[index, action], search.qvalues[index, action]
        if visits > 0:
            assert any(text.startswith(f"{name}  n {visits}  Q {q:.3g}") for text in said)
    assert f"plays {('left', 'stay', 'right')[search.action[index]]}" in ax.get_title(loc="left")


def test_labels_of_a_tree_of_50_simulations_do_not_overlap(search):
    figure = plot_search_tree(search)
    figure.canvas.draw()
    boxes = [text.get_window_extent() for text in figure.axes[0].texts]
    crossings = sum(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[i + 1 :])
    assert crossings <= len(boxes) // 10, f"{crossings} of {len(boxes)} labels overlap"


def test_principal_variation(search):
    for index in range(3):
        nodes = principal_variation(search, index)
        tree = search.tree
        assert nodes[0] == 0
        assert tree.action_from_parent[index, nodes[1]] == search.action[index]
        for parent, child in itertools.pairwise(nodes):
            assert tree.parents[index, child] == parent
        for node in nodes[1:-1]:
            assert tree.children_visits[index, node].max() == tree.node_visits[index, nodes[nodes.index(node) + 1]]
        assert not (tree.children_index[index, nodes[-1]] > 0).any()


def test_policies(search):
    figure = plot_policies(search, 1)
    bars = figure.axes[0].containers
    prior, visits, improved = ([bar.get_height() for bar in container] for container in bars)
    np.testing.assert_allclose(prior, search.tree.children_prior_probs[1, 0])
    np.testing.assert_allclose(visits, search.visit_counts[1] / 50)
    np.testing.assert_allclose(improved, search.action_weights[1])


def test_a_single_simulation_can_be_drawn():
    root = np.zeros((1, 2)), np.zeros(1), np.zeros((1, 1))
    step = RecurrentOutput(np.zeros(1), np.ones(1), *root)
    found = gumbel_muzero_search(RootOutput(*root), lambda latent, action: step, 1)
    assert len(texts(plot_search_tree(found))) == 1
    labels = [label.get_text() for label in plot_policies(found).axes[0].get_xticklabels()]
    assert sum("unvisited" in label for label in labels) == 1


def test_model_errors():
    errors = [ModelErrors(np.arange(1.0, 4.0) * t, np.arange(4.0) * t, np.full(4, 0.1), np.full(3, np.nan)) for t in (1, 2)]
    figure = plot_model_errors([5_000, 10_000], errors)
    reward, value = (ax.collections[0].get_array() for ax in figure.axes[:2])
    np.testing.assert_allclose(reward.reshape(3, 2), [[1, 2], [2, 4], [3, 6]])
    np.testing.assert_allclose(value.reshape(4, 2)[1:], [[1, 2], [2, 4], [3, 6]])
    with pytest.raises(ValueError, match="`errors` must hold at least one measurement"):
        plot_model_errors([], [])


def test_value_calibration():
    values = np.arange(100.0)
    ax = plot_value_calibration(values, 2 * values).axes[0]
    assert ax.get_title(loc="left") == "bias -49.5, correlation 1.00"
    groups = next(line for line in ax.lines if line.get_label().startswith("means"))
    np.testing.assert_allclose(groups.get_xdata(), np.arange(4.5, 100, 10))
    np.testing.assert_allclose(groups.get_ydata(), 2 * np.arange(4.5, 100, 10))


def test_latent_map_shows_what_varies_most():
    generator = np.random.default_rng(0)
    coordinates = generator.normal(size=(300, 2)) * [5.0, 1.0]
    directions = np.linalg.qr(generator.normal(size=(8, 2)))[0].T
    ax = plot_latent_map(coordinates @ directions + 3.0, coordinates[:, 0]).axes[0]
    shown = np.asarray(ax.collections[0].get_offsets())
    assert abs(np.corrcoef(shown[:, 0], coordinates[:, 0])[0, 1]) > 0.999
    assert abs(np.corrcoef(shown[:, 1], coordinates[:, 1])[0, 1]) > 0.99
    assert plot_latent_map(np.arange(5.0)[:, None], np.zeros(5)).axes[0].get_xlabel().endswith("(100% of the variance)")


def test_imagined_episode_and_frames():
    real = {"reward": np.arange(20.0), "value": np.zeros(20)}
    imagined = {"reward": np.arange(10.0).reshape(2, 5), "value": np.ones((2, 5))}
    figure = plot_imagined_episode(real, imagined, [3, 12])
    ax = figure.axes[0]
    np.testing.assert_array_equal(ax.lines[0].get_ydata(), real["reward"])
    np.testing.assert_array_equal(ax.lines[3].get_xdata(), np.arange(12, 17))
    np.testing.assert_array_equal(ax.lines[3].get_ydata(), imagined["reward"][1])

    frames = np.random.default_rng(0).random((2, 3, 4, 4, 3))
    figure = plot_imagined_frames(*frames, [0, 2, 5])
    np.testing.assert_allclose([ax.images[0].get_array() for ax in figure.axes], frames.reshape(6, 4, 4, 3))
    assert [ax.get_title() for ax in figure.axes[:3]] == ["now", "2 steps", "5 steps"]
    ratios = [psnr(frames[1, 2], frames[0, 2]), psnr(frames[0, 0], frames[0, 2])]
    assert figure.axes[5].get_xlabel() == "{:.1f} dB\nfirst frame {:.1f}".format(*ratios)


def test_colours():
    np.testing.assert_allclose(to_rgb(np.full((1, 1, 2, 2), 0.5)), 0.5 * np.ones((1, 2, 2, 3)))
    rgb = np.random.default_rng(0).random((2, 3, 4, 5))
    np.testing.assert_array_equal(to_rgb(rgb), rgb.transpose(0, 2, 3, 1))
    shown = to_rgb(np.eye(6).reshape(1, 6, 1, 6))[0, 0]
    assert len({tuple(colour) for colour in shown.tolist()}) == 6  # a colour each
    assert shown.max(-1).min() == 1.0
    assert to_rgb(np.zeros((1, 7, 2, 2))).max() == 0
