"""Object collision: where did particles of these two colours last meet? (Expire-Span, Sukhbaatar et al. 2021, 2105.06548)

Each time step lists row, column and colour of every particle, then queries a pair of colours. The label on the second colour is
the quadrant where that pair last met. There is no label if it never met. Particles move at a velocity ~ N(0, speed^2), drawn
again at a wall, and change colour with probability `change`. With probability `easy` the query is the pair that met last, else
a random pair. An example has `steps` time steps, but the paper has one endless stream.  Legend: L tokens.
"""

from __future__ import annotations

import dataclasses
from itertools import combinations

import numpy as np

from memtx.data.streams import NOTHING
from memtx.data.tokenizers import Words
from memtx.tasks.base import Example, Task, check, octave


class ObjectCollision(Task):
    """Moving particles, and queries for the last meeting of two colours."""

    tokenizer: Words

    @dataclasses.dataclass(frozen=True)
    class Config:
        steps: int = 512
        particles: int = 2
        colours: int = 5
        grid: int = 16
        speed: float = 0.5
        change: float = 0.05  # the probability that a particle changes its colour in a step
        easy: float = 0.4

        def __post_init__(self):
            check(
                min(self.steps, self.colours) >= 1 and self.particles >= 2,
                "steps and colours must be at least 1 and particles at least 2",
            )
            check(self.grid >= 4 and self.speed > 0, "grid must be at least 4 and speed above 0")

    def __init__(self, config: Config):
        super().__init__(config)
        kinds = (("r", config.grid), ("c", config.grid), ("colour", config.colours), ("?", config.colours), ("quadrant", 4))
        self.tokenizer = Words("collisions", [f"{kind}{i}" for kind, count in kinds for i in range(count)])
        self.length = config.steps * (3 * config.particles + 2)

    def example(self, rng):
        c, id_of = self.config, self.tokenizer.ids
        position = rng.uniform(1, c.grid - 2, (c.particles, 2)).tolist()
        velocity = rng.normal(0, c.speed, (c.particles, 2)).tolist()
        colour = rng.integers(c.colours, size=c.particles).tolist()
        changes = rng.random((c.steps, c.particles)) < c.change
        new_colour = rng.integers(c.colours, size=(c.steps, c.particles)).tolist()
        easy = rng.random(c.steps) < c.easy
        pairs = rng.integers(c.colours, size=(c.steps, 2)).tolist()
        met: dict[tuple[int, int], tuple[int, int]] = {}  # (step, quadrant) of each ordered pair's last meeting
        words, labels, steps_A, latest = [], [], [], None
        for step in range(c.steps):
            for p in range(c.particles):
                position[p], velocity[p] = self._move(rng, position[p], velocity[p])
                colour[p] = new_colour[step][p] if changes[step, p] else colour[p]
            cell = [(round(row), round(column)) for row, column in position]
            for p, q in combinations(range(c.particles), 2):
                if cell[p] == cell[q]:
                    latest = (colour[p], colour[q])
                    met[latest] = (step, 2 * (cell[p][0] >= c.grid / 2) + (cell[p][1] >= c.grid / 2))
            for (row, column), hue in zip(cell, colour, strict=True):
                words += [f"r{row}", f"c{column}", f"colour{hue}"]
            asked = latest if latest and easy[step] else (pairs[step][0], pairs[step][1])
            words += [f"?{hue}" for hue in asked]
            labels += [NOTHING] * (3 * c.particles + 1) + [id_of[f"quadrant{met[asked][1]}"] if asked in met else NOTHING]
            if asked in met:
                steps_A.append(step - met[asked][0])
        token_L = np.asarray([id_of[word] for word in words], np.int32)
        return Example(token_L, np.asarray(labels, np.int32), {"steps": octave(np.asarray(steps_A, int))})

    def _move(self, rng, position: list[float], velocity: list[float]) -> tuple[list[float], list[float]]:
        """Return position and velocity after one step. A velocity that would leave the grid is drawn again."""
        wall = self.config.grid - 1
        while not all(0 < x + v < wall for x, v in zip(position, velocity, strict=True)):
            velocity = rng.normal(0, self.config.speed, 2).tolist()
        return [x + v for x, v in zip(position, velocity, strict=True)], velocity
