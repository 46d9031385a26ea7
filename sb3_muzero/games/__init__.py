"""Two-player board games, opponents and self-play. Importing this package registers the games with Gymnasium."""

import gymnasium as gym

from sb3_muzero.games.board_games import BoardGameEnv, ConnectFourEnv, GomokuEnv, HexEnv, TicTacToeEnv

GAMES: dict[str, type[BoardGameEnv]] = {
    game.__name__.removesuffix("Env"): game for game in (TicTacToeEnv, ConnectFourEnv, GomokuEnv, HexEnv)
}

for name, game in GAMES.items():
    gym.register(f"sb3_muzero/{name}-v0", entry_point=f"{game.__module__}:{game.__name__}")

__all__ = ["GAMES", "BoardGameEnv", "ConnectFourEnv", "GomokuEnv", "HexEnv", "TicTacToeEnv"]
