"""Object collision: where did particles of these two colours last meet? (Expire-Span, Sukhbaatar et al. 2021, 2105.06548)

Each time step says row, column and colour of every particle, then asks for a pair of colours; the label on the second is the
quadrant where that pair last met, nothing if it never did. Particles move at a velocity ~ N(0, speed^2), drawn again at a wall;
they change colour with chance 0.05. The pair asked for is the last one that met with chance `easy`, else random. Examples are
`steps` long; in the paper it is one endless stream.  Legend: L tokens.
"""

from __future__ import annotations

import dataclasses
from itertools import combinations

import numpy as np

from memtx.data.tokenizers import Words
from memtx.tasks.base import NOTHING, Example, Task, check, octave


class ObjectCollision(Task):
    tokenizer: Words

    @dataclasses.dataclass(frozen=True)
    class Config:
        steps: int = 512
        particles: int = 2
        colours: int = 5
        grid: int = 16
        speed: float = 0.5
        change: float = 0.05  # of colour
        easy: float = 0.4

        def __post_init__(self):
            check(min(self.steps, self.colours) >= 1 and self.particles >= 2, "steps and colours from 1, particles from 2")
            check(self.grid >= 4 and self.speed > 0, "grid must be at least 4 and speed above 0")

    def __init__(self, config: Config):
        super().__init__(config)
        kinds = (("r", config.grid), ("c", config.grid), ("colour", config.colours), ("?", config.colours), ("quadrant", 4))
        self.tokenizer = Words("collisions", [f"{kind}{i}" for kind, count in kinds for i in range(count)])
        self.length = config.steps * (3 * config.particles + 2)

    def example(self, rng):
        c, id_of = self.config, self.tokenizer.ids
        place = rng.uniform(1, c.grid - 2, (c.particles, 2)).tolist()
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
                place[p], velocity[p] = self._move(rng, place[p], velocity[p])
                colour[p] = new_colour[step][p] if changes[step, p] else colour[p]
            cell = [(round(row), round(column)) for row, column in place]
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

    def _move(self, rng, place: list[float], velocity: list[float]) -> tuple[list[float], list[float]]:
        """One step on, at a new velocity where the old one would leave the grid."""
        wall = self.config.grid - 1
        while not all(0 < x + v < wall for x, v in zip(place, velocity, strict=True)):
            velocity = rng.normal(0, self.config.speed, 2).tolist()
        return [x + v for x, v in zip(place, velocity, strict=True)], velocity
