"""A report on a saved model in one HTML file: results, decisions, open-loop predictions, diagnostics and settings."""

import base64
import html
from pathlib import Path
from typing import Any

import numpy as np
import torch as th
from matplotlib.figure import Figure
from stable_baselines3.common.utils import set_random_seed
from stable_baselines3.common.vec_env import VecEnv

from sb3_muzero import __version__
from sb3_muzero.analysis import plotting
from sb3_muzero.analysis.diagnostics import METRICS, ModelErrors, discounted_returns, measure, settings_of, value_figures
from sb3_muzero.analysis.recording import Episode, Recording, play, stacked
from sb3_muzero.common.pytree import tree_map
from sb3_muzero.common.vec_env_checks import frames_in_observation
from sb3_muzero.models.decoder import DecoderProbe, to_rgb
from sb3_muzero.muzero import MuZero

DEPTH = 20  # steps of an open-loop prediction
SHOWN_DEPTHS = (0, 1, 5, 10, 20)  # of imagined frames
DECODER_UPDATES = 2_000
MAX_QUANTITIES = 6  # of a vector observation, that are drawn

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #222; max-width: 72rem; margin: 2rem auto; padding: 0 1rem }
h1 { margin-bottom: 0 } h2 { margin-top: 2.5rem; border-bottom: 1px solid #ddd }
table { border-collapse: collapse; font-size: 0.9rem }
td { padding: 0.25rem 0.8rem; vertical-align: top } td.number { font-variant-numeric: tabular-nums }
tr:nth-child(even) { background: #f6f6f6 } .note { color: #666; font-size: 0.9rem }
img { max-width: 100% } .wide { overflow-x: auto } .wide img { max-width: none }
"""


def picture(figure: Figure, text: str) -> str:
    """
    :param figure: Figure
    :param text: Its alternative text
    :return: HTML that contains the figure
    """
    return f'<img alt="{html.escape(text)}" src="data:image/png;base64,{base64.b64encode(plotting.to_png(figure)).decode()}">'


def table(rows: list[tuple[str, Any, str]]) -> str:
    """
    :param rows: Name, figure or text, and explanation of each
    :return: HTML
    """
    cells = []
    for name, value, explanation in rows:
        number = isinstance(value, (int, float))
        shown = f"{value:.4g}" if isinstance(value, float) else str(value)
        cells.append(
            f"<tr><td>{html.escape(name)}</td><td{' class=number' if number else ''}>{html.escape(shown)}</td>"
            f"<td>{html.escape(explanation)}</td></tr>"
        )
    return f"<table>{''.join(cells)}</table>"


def prediction_pictures(model: MuZero, episode: Episode, decoder: DecoderProbe | None) -> list[str]:
    """
    What the model predicts from several steps of an episode on, given only the actions that were taken.

    :param model: The model
    :param episode: The episode
    :param decoder: Reconstructs observations from latents, optional
    :return: HTML
    """
    depth = min(DEPTH, len(episode.actions))
    starts = np.unique(np.linspace(0, len(episode.actions) - depth, 5).astype(int))
    latent_model, seen = model.policy.latent_model, stacked(episode.observations, model.device)
    actions = th.as_tensor(episode.actions[starts + np.arange(depth)[:, None]], device=model.device)
    with th.no_grad():
        predicted = latent_model.unroll(tree_map(lambda part: part[starts], seen), actions)
        values = latent_model.value_support.expectation(predicted.value_logits).T.numpy(force=True)
        rewards = latent_model.reward_support.expectation(predicted.reward_logits).T.numpy(force=True)
        real_values = model.policy.predict_values(seen).squeeze(-1).numpy(force=True)
        decoded = None if decoder is None else decoder(predicted.latents).transpose(0, 1).numpy(force=True)
        newest = None if decoder is None else decoder.newest(seen).numpy(force=True)
    rewards = np.pad(rewards, ((0, 0), (1, 0)), constant_values=np.nan)  # of the step before the first one
    real = {"reward": np.concatenate([[np.nan], episode.rewards]), "value": real_values}
    imagined = {"reward": rewards, "value": values}
    pictures = []
    if decoded is not None and newest is not None and decoded.ndim == 3:  # vectors
        for i in range(min(decoded.shape[-1], MAX_QUANTITIES)):
            real[f"observation {i}"], imagined[f"observation {i}"] = newest[:, i], decoded[..., i]
    elif decoded is not None and newest is not None:  # images
        shown, middle = np.array([steps for steps in SHOWN_DEPTHS if steps <= depth]), len(starts) // 2
        frames = to_rgb(newest[starts[middle] + shown]), to_rgb(decoded[middle][shown])
        pictures.append(picture(plotting.plot_imagined_frames(*frames, list(shown)), "real frames above imagined ones"))
    text = "rewards, values and observations of an episode, and the model's predictions"
    return [*pictures, picture(plotting.plot_imagined_episode(real, imagined, list(starts)), text)]


def values_and_returns(model: MuZero, episodes: list[Episode]) -> tuple[np.ndarray, np.ndarray]:
    """
    :param model: The model
    :param episodes: Episodes that it played
    :return: Root values of all steps, and the discounted returns that followed, each of shape ``[N]``
    """
    values, returns = [], []
    for episode in episodes:
        last_value = 0.0
        if not episode.terminated:
            with th.no_grad():
                last_value = model.policy.predict_values(stacked(episode.observations[-1:], model.device)).item()
        discount = model.discount if episode.turn_signs is None else model.gamma * episode.turn_signs
        values.append(episode.root_values)
        returns.append(discounted_returns(episode.rewards, discount, last_value))
    return np.concatenate(values), np.concatenate(returns)


def write_report(
    model: MuZero,
    env: VecEnv,
    path: str | Path,
    num_episodes: int = 24,
    max_steps: int = 20_000,
    seed: int = 0,
    name: str = "",
) -> None:
    """
    Let a model play, and write the report. The model's replay buffer must be empty, and is empty afterwards.

    :param model: The model, as it was loaded
    :param env: Environments as it was trained in
    :param path: HTML file to write
    :param num_episodes: Episodes to play without exploration noise, and as many with it. Results are those without noise; of
        a two-player game those with noise, since without it every game is the same
    :param max_steps: Steps at most, of each of the two
    :param seed: Of environments and noise
    :param name: Name of the environment, for the title
    :raises ValueError: for a model whose replay buffer is not empty
    """
    buffer = model.replay_buffer
    if buffer.size() > 0:
        raise ValueError("`model` must have an empty replay buffer, as after `MuZero.load`: episodes are stored in it")
    set_random_seed(seed)
    env.seed(seed)
    model.policy.set_training_mode(False)
    try:
        played = play(model, env, num_episodes, max_steps, deterministic=True, replay_buffer=buffer)
        buffer.cut()
        explored = play(model, env, num_episodes, max_steps, deterministic=False, replay_buffer=buffer)
        errors, figures = measure(model, 512, 5)
    finally:
        buffer.reset()

    graded = explored if model.two_player else played
    calibration = values_and_returns(model, graded.episodes)
    figures |= value_figures(*calibration)

    episodes = played.episodes + explored.episodes
    longest = max(played.episodes, key=lambda episode: len(episode.actions))
    everything = [obs for episode in episodes for obs in episode.observations]
    some = stacked([everything[i] for i in np.random.permutation(len(everything))[:2_000]], model.device)
    with th.no_grad():
        latents = model.policy.represent(some).numpy(force=True)
        latent_values = model.policy.predict_values(some).squeeze(-1).numpy(force=True)

    settings = [(setting_name, str(value), "") for setting_name, value in settings_of(model).items()]
    sections = [
        _results_section(model, graded),
        _decisions_section(model, longest),
        _prediction_section(model, env, episodes, longest),
        f"<h2>Diagnostics</h2><div>{picture(plotting.plot_value_calibration(*calibration), 'values against returns')}</div>",
        _calibration_section(errors, figures),
        f"<h2>Latent space</h2>{picture(plotting.plot_latent_map(latents, latent_values), 'map of latents')}",
        f"<h2>Settings</h2>{table(settings)}",
    ]
    title = f"MuZero on {html.escape(name or 'an environment')}"
    note = f'<p class="note">sb3_muzero {__version__}; up to {num_episodes} episodes or {max_steps} steps, seed {seed}</p>'
    head = f'<meta charset="utf-8"><title>{title}</title><style>{STYLE}</style>'
    page = f'<!doctype html><html lang="en">{head}<h1>{title}</h1>{note}{"".join(sections)}</html>\n'
    Path(path).write_text(page, encoding="utf-8")


def _results_section(model: MuZero, played: Recording) -> str:
    kind = "with exploration noise" if model.two_player else "deterministic"
    cut = f"{played.cut_short} more were cut short at the limit of steps" if played.cut_short > 0 else ""
    rows: list[tuple[str, Any, str]] = [
        ("trained", model.num_timesteps, "environment steps"),
        ("gradient updates", model._n_updates, ""),
        ("complete episodes", len(played.returns), f"{kind}; {cut}" if cut else kind),
    ]
    if played.returns and model.two_player:
        decided = float(np.mean(np.array(played.returns) != 0))
        rows.append(("decided games", decided, "share of the games of self-play that are no draws"))
        rows.append(("mean length", float(np.mean(played.lengths)), "plies"))
    elif played.returns:
        rows += [
            ("mean return", float(np.mean(played.returns)), f"standard deviation {np.std(played.returns):.4g}"),
            ("minimum and maximum", f"{min(played.returns):.4g} to {max(played.returns):.4g}", ""),
            ("mean length", float(np.mean(played.lengths)), "steps"),
        ]
    rows.append(("planning", model.policy.uncompiled_reason or "compiled", f"{model.num_simulations} simulations"))
    return f"<h2>Results</h2>{table(rows)}"


def _decisions_section(model: MuZero, longest: Episode) -> str:
    observations = stacked(longest.observations[:-1], model.device)
    search = model.policy.plan(observations, deterministic=True, action_masks=longest.action_masks)
    weights = np.sort(search.action_weights, axis=1)
    contested = int((weights[:, -1] - weights[:, -2]).argmin()) if weights.shape[1] > 1 else 0
    steps = list(dict.fromkeys((0, len(longest.actions) // 2, contested)))
    parts = ["<h2>Decisions</h2><p>The first step of an episode, its middle, and the step with the closest decision.</p>"]
    for step in steps:
        bars = picture(plotting.plot_policies(search, step, actions=model.policy.actions), f"policies of step {step}")
        tree = picture(plotting.plot_search_tree(search, step, actions=model.policy.actions), f"search tree of step {step}")
        parts.append(f"<h3>Step {step}</h3><div>{bars}</div><div class=wide>{tree}</div>")
    return "".join(parts)


def _prediction_section(model: MuZero, env: VecEnv, episodes: list[Episode], longest: Episode) -> str:
    note = ""
    decoder: DecoderProbe | None = None
    try:
        policy = model.policy
        decoder = DecoderProbe(policy.represent, policy.observation_space, policy.device, frames_in_observation(env))
    except ValueError as reason:
        note = f"Observations are not reconstructed: {reason}. "
    if decoder is not None:
        known, held_out = [
            stacked([obs for episode in part for obs in episode.observations], model.device)
            for part in ([*episodes[::4], *episodes[1::4], *episodes[2::4]], episodes[3::4] or episodes)
        ]
        share = decoder.fit(known, held_out, DECODER_UPDATES)
        note = (
            "Observations are reconstructed from latents by a decoder that is trained for this report alone; it explains "
            f"{max(share, 0.0):.0%} of the variance in held-out episodes. What it can't reconstruct, latents do not contain: "
            "they represent what rewards and values depend on. "
        )
    pictures = "".join(f"<div>{shown}</div>" for shown in prediction_pictures(model, longest, decoder))
    return (
        f"<h2>Open-loop predictions</h2><p>From five steps of an episode on, the model predicts up to {DEPTH} steps ahead, "
        f"given only the actions that were taken. {html.escape(note)}</p>{pictures}"
    )


def _calibration_section(errors: ModelErrors, figures: dict[str, float]) -> str:
    rows: list[tuple[str, Any, str]] = []
    for kind, by_depth in errors._asdict().items():
        shown = ", ".join(f"{error:.3g}" for error in by_depth)
        rows.append((f"model_error/{kind}", shown, METRICS[f"model_error/{kind}"]))
    for name, figure in figures.items():
        rows.append((name, figure, METRICS["grad_norm" if name.startswith("grad_norm") else name]))
    return table(rows)
