#!/bin/bash
# The runs behind the first table of examples/report.py, from the fastest to the slowest; two at a time on two cores.
# Started again it goes on with what is missing. `--resume` keeps every run that a JSON file already has, so move the
# files of examples/results away (or take MuZero's runs out of them) to measure another version. Needs, from the repository:
# pip install -e ".[comparisons,games]" jax mctx
# nohup bash examples/reproduce.sh > reproduce.log 2>&1 &
cd "$(dirname "$0")/.." || exit 1
set -x

# Search; nothing else should run beside it
python examples/benchmark_search.py --against-mctx --models a2 --searches gumbel --clock cpu --heads scalar --json examples/results/benchmark_search_a2_scalar.json
python examples/benchmark_search.py --against-mctx --models a2 --searches gumbel --clock cpu --json examples/results/benchmark_search_a2_101_bins.json

# Defaults
python examples/compare_baselines.py --env CartPole-v1 --seeds 10 --steps 20000 --eval-every 500 --threshold 475 --jobs 2 --resume
python examples/compare_baselines.py --gym-packages tasks --env tasks/Bandit-v0 --steps 4000 --eval-every 1000 --jobs 2 --resume
python examples/compare_baselines.py --gym-packages tasks --env tasks/DotBandit-v0 --steps 6000 --eval-every 1000 --jobs 2 --resume
python examples/compare_baselines.py --gym-packages tasks --env tasks/ConstantCost-v0 --steps 8000 --eval-every 1000 --jobs 2 --resume
python examples/compare_baselines.py --gym-packages tasks --env tasks/NoisyCartPole-v0 --steps 20000 --eval-every 500 --jobs 2 --resume

# Untuned tasks, defaults of all algorithms. No evaluation of Blackjack reaches 1, so that returns decide
python examples/compare_baselines.py --defaults --env Blackjack-v1 --steps 20000 --threshold 1 --final-episodes 5000 --jobs 2 --resume
python examples/compare_baselines.py --defaults --gym-packages tasks --env tasks/CliffWalking-v0 --steps 20000 --jobs 2 --resume
python examples/compare_baselines.py --defaults --gym-packages minigrid --env MiniGrid-Empty-8x8-v0 --steps 20000 --threshold 0.9 --jobs 2 --resume
python examples/compare_baselines.py --defaults --env Acrobot-v1 --steps 20000 --threshold -100 --jobs 2 --resume
python examples/compare_baselines.py --defaults --gym-packages tasks --env tasks/TwoRooms-v0 --steps 20000 --jobs 2 --resume

# Settings of zoo_configs/muzero.yml and of RL Zoo
python examples/compare_baselines.py --env Acrobot-v1 --steps 15000 --threshold -100 --jobs 2 --resume
python examples/compare_baselines.py --env MountainCar-v0 --steps 60000 --eval-every 1000 --threshold -115 --jobs 2 --resume
python examples/compare_baselines.py --gym-packages minigrid --env MiniGrid-DoorKey-5x5-v0 --algos muzero ppo --steps 50000 --eval-every 1000 --threshold 0.9 --jobs 2 --resume
python examples/compare_baselines.py --env Taxi-v4 --algos muzero ppo --steps 100000 --eval-every 5000 --threshold 7.5 --jobs 2 --resume
python examples/compare_baselines.py --env FrozenLake8x8-v1 --algos muzero ppo --steps 100000 --eval-every 5000 --threshold 0.86 --final-episodes 500 --jobs 2 --resume
python examples/compare_baselines.py --env LunarLander-v3 --steps 100000 --eval-every 5000 --threshold 200 --jobs 2 --resume
python examples/compare_baselines.py --gym-packages minigrid --env MiniGrid-KeyCorridorS3R1-v0 --algos muzero ppo --steps 100000 --eval-every 5000 --threshold 0.9 --jobs 2 --resume
python examples/self_play.py TicTacToe --seeds 10 --curve-depths 2 4 --evaluations 6 --jobs 2 --resume --json examples/results/self_play_TicTacToe.json
python examples/compare_baselines.py --env MinAtar/Breakout-v1 --algos muzero dqn --seeds 3 --steps 300000 --eval-every 25000 --threshold 8.3 --env-kwargs max_episode_steps=2500 --jobs 2 --resume
python examples/compare_baselines.py --env MinAtar/SpaceInvaders-v1 --algos muzero dqn --seeds 3 --steps 300000 --eval-every 25000 --threshold 27 --env-kwargs max_episode_steps=2500 --jobs 2 --resume
python examples/compare_baselines.py --env MinAtar/Freeway-v1 --algos muzero dqn --seeds 3 --steps 300000 --eval-every 25000 --threshold 33 --env-kwargs max_episode_steps=2500 --jobs 2 --resume
python examples/compare_baselines.py --env MinAtar/Asterix-v1 --algos muzero dqn --seeds 3 --steps 300000 --eval-every 25000 --threshold 10 --env-kwargs max_episode_steps=2500 --jobs 2 --resume
python examples/compare_baselines.py --env MinAtar/Seaquest-v1 --algos muzero dqn --seeds 3 --steps 300000 --eval-every 25000 --threshold 10 --env-kwargs max_episode_steps=2500 --jobs 2 --resume

# Continuous and composite actions; Hopper needs gymnasium[mujoco]
python examples/compare_baselines.py --env Pendulum-v1 --seeds 10 --steps 20000 --eval-every 500 --threshold -200 --jobs 2 --resume
python examples/compare_baselines.py --env MountainCarContinuous-v0 --steps 50000 --eval-every 1000 --threshold 90 --jobs 2 --resume
python examples/compare_baselines.py --gym-packages tasks --env tasks/Arm-v0 --steps 20000 --eval-every 1000 --threshold -5 --jobs 2 --resume
python examples/compare_baselines.py --env LunarLanderContinuous-v3 --steps 150000 --eval-every 5000 --threshold 200 --jobs 2 --resume
python examples/compare_baselines.py --env BipedalWalker-v3 --seeds 3 --steps 300000 --eval-every 10000 --threshold 250 --jobs 2 --resume
python examples/compare_baselines.py --env Hopper-v5 --algos muzero ppo sac tqc --seeds 3 --steps 200000 --eval-every 10000 --threshold 2000 --jobs 2 --resume

python examples/report.py
