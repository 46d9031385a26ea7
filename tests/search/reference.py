"""
A search that is slow and obvious: one root, node objects, plain Python in double precision, straight from the papers.

It shares nothing with the package but the meaning. Values are means of lists of returns, not running updates.
"""

import math
from dataclasses import dataclass, field


@dataclass
class Node:
    state: int
    index: int
    logits: list
    raw_value: float
    returns: list
    children: dict = field(default_factory=dict)  # action or outcome -> (reward, discount, Node)
    is_chance: bool = False

    @property
    def value(self):
        return sum(self.returns) / len(self.returns)

    @property
    def priors(self):
        weights = [math.exp(logit - max(self.logits)) for logit in self.logits]
        return [weight / sum(weights) for weight in weights]

    def visits(self, action):
        return len(self.children[action][2].returns) if action in self.children else 0

    def q(self, action):
        reward, discount, child = self.children[action]
        return reward + discount * child.value


class ReferenceSearch:
    """
    Run one search; afterwards ``root``, ``action`` and ``action_weights`` hold its result and ``close_call`` says whether
    some choice was so close that single precision may decide it otherwise.
    """

    def __init__(self, model, state, num_simulations, *, rule, scope, max_depth, invalid, min_range, **constants):
        self.model, self.rule, self.scope, self.min_range = model, rule, scope, min_range
        self.constants = constants
        self.num_actions = len(model.prior_logits[0])
        self.valid = [a for a in range(self.num_actions) if not invalid[a]]
        self.close_call = False
        self.budget = num_simulations
        self.root = self.make_node(state, 0)
        self.root.logits = [self.root.logits[a] if a in self.valid else -math.inf for a in range(self.num_actions)]
        self.seen = [self.root.raw_value]
        for simulation in range(num_simulations):
            self.simulate(simulation, max_depth or num_simulations)
        if rule == "gumbel":
            most = max(self.root.visits(a) for a in range(self.num_actions))
            self.action = self.gumbel_root_action(most)
            self.action_weights = self.improved_policy(self.root)
        else:
            counts = [self.root.visits(a) for a in range(self.num_actions)]
            self.action = max(self.valid, key=lambda a: (counts[a], self.root.priors[a], -a))
            self.action_weights = [count / num_simulations for count in counts]

    def make_node(self, state, index):
        value = float(self.model.value[state])
        return Node(state, index, [float(x) for x in self.model.prior_logits[state]], value, [value])

    def step(self, node, action, index):
        after = self.make_node(int(self.model.next_state[node.state][action]), index)
        return float(self.model.reward[node.state][action]), float(self.model.discount[node.state][action]), after

    def simulate(self, simulation, max_depth):
        path, node = [], self.root
        while True:
            action = self.choose(node, simulation)
            path.append((node, action))
            if action not in node.children:
                node.children[action] = self.step(node, action, simulation + 1)
                leaf = node.children[action][2]
                break
            node = node.children[action][2]
            if len(path) == max_depth:
                node.returns.append(node.raw_value)
                leaf = node
                break
        value = leaf.raw_value
        for node, action in reversed(path):
            self.seen.append(node.q(action))
            reward, discount, _ = node.children[action]
            value = reward + discount * value
            node.returns.append(value)

    def choose(self, node, simulation):
        if self.rule == "puct":
            return self.puct_action(node)
        if node is self.root:
            return self.gumbel_root_action(self.considered_visit(simulation))
        policy = self.improved_policy(node)
        total = sum(node.visits(a) for a in range(self.num_actions))
        scores = {a: policy[a] - node.visits(a) / (1 + total) for a in range(self.num_actions)}
        return self.best(scores)

    def best(self, scores):
        ranked = sorted(scores, key=lambda a: (-scores[a], a))
        if len(ranked) > 1 and scores[ranked[0]] - scores[ranked[1]] < self.tolerance:
            self.close_call = True
        return ranked[0]

    def rescale(self, values, low, high, scale):
        spread = max(high - low, self.min_range)
        self.tolerance = 1e-5 + (2e-6 * scale / spread if high > low else 0.0)
        return [scale * min(max((value - low) / spread, 0.0), 1.0) for value in values]

    def sigma(self, node):
        visited = [a for a in range(self.num_actions) if node.visits(a)]
        total = sum(node.visits(a) for a in visited)
        mixed = node.raw_value
        if visited:
            weights = {a: max(node.priors[a], 1.1754944e-38) for a in visited}
            weighted = sum(weights[a] * node.q(a) for a in visited) / sum(weights.values())
            mixed = (node.raw_value + total * weighted) / (1 + total)
        completed = [node.q(a) if a in visited else mixed for a in range(self.num_actions)]
        scale = self.constants["maxvisit_init"] + max(node.visits(a) for a in range(self.num_actions))
        low, high = (min(completed), max(completed)) if self.scope == "node" else (min(self.seen), max(self.seen))
        return self.rescale(completed, low, high, scale * self.constants["value_scale"])

    def improved_policy(self, node):
        logits = [logit + s for logit, s in zip(node.logits, self.sigma(node), strict=True)]
        weights = [math.exp(logit - max(logits)) for logit in logits]
        return [weight / sum(weights) for weight in weights]

    def gumbel_root_action(self, considered_visit):
        sigma = self.sigma(self.root)
        gumbel = self.constants["root_gumbel"]
        scores = {
            a: max(-1e9, float(gumbel[a]) + self.root.logits[a] - max(self.root.logits) + sigma[a])
            for a in self.valid
            if self.root.visits(a) == considered_visit
        }
        return self.best(scores)

    def considered_visit(self, simulation):
        """Sequential Halving as the paper tells it: phases over a shrinking set of candidates."""
        m = min(self.constants["max_considered"], len(self.valid))
        if m <= 1:
            return simulation
        phases, remaining, spent, visits = math.ceil(math.log2(m)), m, 0, 0
        while True:
            for _ in range(max(1, self.budget // (phases * remaining))):
                if simulation < spent + remaining:
                    return visits
                spent, visits = spent + remaining, visits + 1
            remaining = max(2, remaining // 2)

    def puct_action(self, node):
        visited = [a for a in range(self.num_actions) if node.visits(a)]
        pool = [node.value, *(node.q(a) for a in visited)] if self.scope == "node" else self.seen
        low, high = min(pool), max(pool)
        normalized = self.rescale([node.q(a) if a in visited else low for a in range(self.num_actions)], low, high, 1.0)
        count = len(node.returns)
        c1, c2 = self.constants["pb_c_init"], self.constants["pb_c_base"]
        bonus = math.sqrt(count) * (c1 + math.log((count + c2 + 1) / c2))
        actions = self.valid if node is self.root else range(self.num_actions)
        return self.best({a: normalized[a] + bonus * node.priors[a] / (1 + node.visits(a)) for a in actions})

    def nodes(self):
        stack = [self.root]
        while stack:
            node = stack.pop()
            yield node
            stack.extend(child for _, _, child in node.children.values())


class ChanceReferenceSearch(ReferenceSearch):
    """The same with a model with chance, whose afterstates are pairs of state and action."""

    def __init__(self, model, *args, **kwargs):
        self.num_outcomes = len(model.reward[0][0])
        super().__init__(model, *args, **kwargs)

    def step(self, node, action, index):
        if node.is_chance:
            edge = *node.state, action
            after = self.make_node(int(self.model.next_state[edge]), index)
            return float(self.model.reward[edge]), float(self.model.discount[edge]), after
        state = node.state, action
        value = float(self.model.afterstate_value[state])
        logits = [float(x) for x in self.model.chance_logits[state]]
        return 0.0, 1.0, Node(state, index, logits, value, [value], is_chance=True)

    def choose(self, node, simulation):
        if not node.is_chance:
            return super().choose(node, simulation)
        self.tolerance = 1e-6
        return self.best({c: node.priors[c] / (node.visits(c) + 1) for c in range(self.num_outcomes)})
