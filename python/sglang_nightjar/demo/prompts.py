"""Prompts for the draft head's training, made here from templates: varied tasks, topics and lengths, no outside data.

`from_templates` needs nothing. `about_texts` takes texts that the target wrote and asks for summaries, answers,
extractions, rewrites and follow-ups about them, which gives long prompts of natural text.
Word lists and templates are in `prompts.json`.
"""

from __future__ import annotations

import json
import random
from importlib.resources import files

Conversation = list[dict[str, str]]
"""Chat messages with the keys `role` and `content`, the last one the user's."""


def lists() -> dict[str, list[str]]:
    """The word lists and templates by name."""
    return json.loads(files(__package__).joinpath("prompts.json").read_text())


def user(text: str) -> Conversation:
    return [{"role": "user", "content": text}]


class PromptMaker:
    """Draws prompts from the lists; the same seed gives the same prompts."""

    def __init__(self, seed: int):
        self.random = random.Random(seed)
        self.lists = lists()

    def fill(self, template: str) -> str:
        """Replaces every ``{list name}`` by a random entry and ``{low..high}`` by a random integer."""
        out = []
        for i, part in enumerate(template.replace("}", "{").split("{")):
            if i % 2 == 0:
                out.append(part)
            elif ".." in part:
                low, high = part.split("..")
                out.append(str(self.random.randint(int(low), int(high))))
            else:
                out.append(self.fill(self.random.choice(self.lists[part])))
        return "".join(out)

    def task(self) -> str:
        """One single-turn instruction; the kinds of task are equally likely."""
        kind = self.random.choice(self.lists["kinds"])
        return self.fill(self.random.choice(self.lists[kind]))

    def records(self) -> str:
        """A small table in a random notation, for extraction tasks."""
        style = self.random.choice(["{name} | {city} | {18..90} | {job}", "{name} ({job}), {18..90}, lives in {city}",
                                    "name: {name}; city: {city}; job: {job}; age: {18..90}"])  # fmt: skip
        return "\n".join(self.fill(style) for _ in range(self.random.randint(3, 7)))

    def from_templates(self, count: int) -> list[Conversation]:
        """`count` distinct conversations of one turn."""
        seen: dict[str, None] = {}
        while len(seen) < count:
            if self.random.random() < 0.06:
                seen[self.fill(self.random.choice(self.lists["extract"])) + "\n\n" + self.records()] = None
            else:
                seen[self.task()] = None
        return [user(text) for text in seen]

    def with_words(self, words: list[str], count: int) -> list[Conversation]:
        """`count` conversations of one turn about names and words drawn from `words`, those with a capital being names.

        The lists above hold a few hundred names; what people paste into a prompt is full of ones that no list has, and
        a draft has to copy them.
        """
        names = [word for word in words if word[0].isupper()]
        plain = [word for word in words if word[0].islower()]
        out = []
        for _ in range(count):
            template = self.random.choice(self.lists["with_words"])
            while "{Word}" in template or "{word}" in template:
                template = template.replace("{Word}", self.random.choice(names), 1)
                template = template.replace("{word}", self.random.choice(plain), 1)
            out.append(user(self.fill(template)))
        return out

    def about_texts(self, turns: list[tuple[str, str]], count: int) -> list[Conversation]:
        """`count` conversations about those of `turns` (instruction, the target's answer) that are long enough."""
        long_enough = [turn for turn in turns if len(turn[1]) >= 200]
        out: list[Conversation] = []
        while long_enough and len(out) < count:
            asked, answer = self.random.choice(long_enough)
            kind = self.random.random()
            if kind < 0.35:
                follow = self.fill(self.random.choice(self.lists["follow_up"]))
                out.append([*user(asked), {"role": "assistant", "content": answer}, *user(follow)])
            elif kind < 0.8:
                about = self.fill(self.random.choice(self.lists["about_text"]))
                # Several answers make an article as long as those that people ask summaries of.
                more = self.random.choices(long_enough, k=self.random.choice((0, 0, 1, 2, 3)))
                text = "\n\n".join([answer, *(other for _, other in more)])
                out.append(user(f"{about}\n\n{text}" if self.random.random() < 0.7 else f"{text}\n\n{about}"))
            else:
                others = self.random.choices(turns, k=self.random.randint(1, 4))
                question = self.fill(self.random.choice(self.lists["question"]))
                passages = "\n\n".join(f"[{i + 1}] {p[:900]}" for i, p in enumerate([answer, *(o for _, o in others)]))
                out.append(user(f"Answer the question with the help of these passages.\n\n{passages}\n\n{question}"))
        return out
