"""How many wrong answers get past `check`: each solution changed in hundreds of ways, one change at a time.

A mutant that gives what the solution gives on 300 inputs wider than the check's (sides up to 10) counts as
equivalent and is left out. `python benchmarks/mutants.py [puzzle ...]`
prints the table. All of it takes ten minutes.
"""

import ast
import contextlib
import copy
import json
import math
import re
import sys
import warnings
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from slowconv.puzzles import Draw, TimeUp, find_fault, judge, puzzles, time_limit

exercises = Path(__file__).parents[1] / "nbs" / "exercises"
operators = [ast.Add, ast.Sub, ast.Mult, ast.Div, ast.FloorDiv, ast.Pow]
compares = [ast.Lt, ast.LtE, ast.Gt, ast.GtE, ast.Eq]
renamed = [
    "sum",
    "mean",
    "amax",
    "amin",
    "relu",
    "abs",
    "argmax",
    "argmin",
    "any",
    "all",
    "exp",
    "log",
]
before = ["abs()", "relu()", "round()", "clamp(max=9)", "clamp(-2, 2)", "flip(0)", "flip(-1)", "mT"]
before += ["[:3]", "[..., :3]", "[..., :2]", "double()", "half().float()"]
after = [
    "abs()",
    "relu()",
    "round()",
    "int()",
    "half()",
    "double()",
    "flip(0)",
    "flip(-1)",
    "squeeze()",
]
after += ["clamp(max=50)", "[:3]", "[..., :3]", "sum()", "tolist()", "mean(0)", "[None]", "mT"]
whole = [
    "min({}, 1)",
    "min({}, 2)",
    "min({}, 3)",
    "min({}, 4)",
    "max({}, 2)",
    "{} + 1",
    "{} - 1",
    "1",
    "2",
]


def functions(pattern):
    "Name and source of each function that a cell of these notebooks begins with."
    for path in sorted(exercises.glob(pattern)):
        for cell in json.loads(path.read_text())["cells"]:
            source = "".join(cell["source"]).split("\n\n\n")[0]
            if source.startswith("def "):
                yield re.match(r"def (\w+)", source)[1], source


def alternatives(node, names):
    "What a node of the syntax tree may be changed into."
    if isinstance(node, ast.BinOp):
        yield from (
            ast.BinOp(node.left, op(), node.right)
            for op in operators
            if not isinstance(node.op, op)
        )
        yield from (node.left, node.right, ast.BinOp(node.right, node.op, node.left))
    if isinstance(node, ast.Constant) and isinstance(node.value, (int, float)):
        yield from (ast.Constant(v) for v in (node.value + 1, node.value - 1, -node.value, 0, 1, 2))
    if isinstance(node, ast.Constant) and "->" in str(node.value):
        letters = sorted(set(node.value) - set(",->"))
        for i, old in enumerate(node.value):
            yield from (
                ast.Constant(node.value[:i] + c + node.value[i + 1 :])
                for c in letters
                if old in letters
            )
    if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load) and node.id in names:
        yield from (ast.Name(n, ast.Load()) for n in names if n != node.id)
        yield from (ast.BinOp(node, op(), ast.Constant(1)) for op in (ast.Add, ast.Sub))
    if isinstance(node, ast.Compare):
        yield from (ast.Compare(node.left, [op()], node.comparators) for op in compares)
    if isinstance(node, ast.Attribute) and node.attr in renamed:
        yield from (ast.Attribute(node.value, n, node.ctx) for n in renamed if n != node.attr)
    if isinstance(node, ast.Call):
        for i in range(len(node.args)):
            yield ast.Call(node.func, node.args[:i] + node.args[i + 1 :], node.keywords)
            yield ast.Call(node.func, node.args[:i] + node.args[i:][::-1], node.keywords)
        yield from (
            ast.Call(node.func, node.args, node.keywords[:i]) for i in range(len(node.keywords))
        )
        if isinstance(node.func, ast.Attribute):
            yield node.func.value
    if isinstance(node, ast.Slice):
        parts = node.lower, node.upper, node.step
        yield from (ast.Slice(*parts[:i], None, *parts[i + 1 :]) for i in range(3) if parts[i])
    if isinstance(node, (ast.AugAssign, ast.Assign, ast.Expr)):
        yield ast.Pass()
    if isinstance(node, ast.AugAssign):
        store = copy.deepcopy(node.target)
        yield from (ast.Assign([store], node.value), ast.AugAssign(store, ast.Sub(), node.value))
    if (
        isinstance(node, (ast.List, ast.Tuple))
        and isinstance(node.ctx, ast.Load)
        and len(node.elts) > 1
    ):
        yield type(node)(node.elts[::-1], node.ctx)
    if isinstance(node, ast.UnaryOp):
        yield node.operand


class Change(ast.NodeTransformer):
    "Replaces the node number `n`, in the order of a walk through the tree."

    def __init__(self, n, new):
        self.n, self.new = n, new

    def visit(self, node):
        self.n -= 1
        return self.new if self.n == -1 else self.generic_visit(node)


def numbered(tree):
    "The nodes in the order in which `Change` meets them."
    yield tree
    for child in ast.iter_child_nodes(tree):
        yield from numbered(child)


def mutants(source, example):
    "Sources that differ from a solution in one place, or in what goes in or comes out."
    tree = ast.parse(source)
    names = sorted(
        {n.id for n in ast.walk(tree) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
    )
    names += [a.arg for a in tree.body[0].args.args]
    for n, node in enumerate(numbered(tree)):
        for new in alternatives(node, names):
            with contextlib.suppress(Exception):
                changed = Change(n, copy.deepcopy(new)).visit(copy.deepcopy(tree))
                yield ast.unparse(ast.fix_missing_locations(changed))
    head, body = source.split("\n", 1)
    for name, v in example.items():
        ways = [f"{name}{'' if w[0] == '[' else '.'}{w}" for w in before] * isinstance(
            v, torch.Tensor
        )
        ways += [w.format(name) for w in whole] * isinstance(v, int)
        yield from (f"{head}\n    {name} = {way}\n{body}" for way in ways)
    inner = source.replace("def ", "def inner_", 1).replace("\n", "\n    ")
    call = f"inner_{head[4:].split('(')[0]}({', '.join(example)})"
    for way in [f".{w}" if w[0] != "[" else w for w in after] + [" + 1", " * 2", " / 2"]:
        yield f"{head}\n    {inner}\n    return {call}{way}"


def is_wrong(answer, slow, puzzle, cases):
    for inputs, wanted in cases:
        try:
            came = answer(*copy.deepcopy(inputs).values())
        except Exception:
            return True
        if judge(slow, puzzle, inputs, came) if puzzle.judged else find_fault(wanted, came):
            return True
    return False


def draw_cases(puzzle, slow, seed, levels, n):
    "Inputs, each with what is wanted."
    draw = Draw(seed)
    for draw.level in levels:
        for inputs in [puzzle.inputs(draw) for _ in range(n)]:
            yield inputs, None if puzzle.judged else slow(**copy.deepcopy(inputs))


def count_mutants(name, source, slow, space):
    "How many mutants there are, how many of them `check` lets pass, and these."
    puzzle, left = puzzles[name], []
    cases = list(draw_cases(puzzle, slow, 0, range(1, 6), 60))  # those of the check
    wide = list(draw_cases(puzzle, slow, 1, (9, 4, 3), 100))
    sources = set(mutants(source, cases[0][0])) - {ast.unparse(ast.parse(source))}
    n = 0
    for text in sorted(sources):
        with contextlib.suppress(SyntaxError):
            exec(text, space)
            try:
                with time_limit(20):
                    caught = is_wrong(space[name], slow, puzzle, cases)
                    n += caught
                    if not caught and is_wrong(space[name], slow, puzzle, wide):
                        n, left = n + 1, [*left, text]
            except TimeUp:
                n += 1  # an answer that takes forever is caught
    return n, left


if __name__ == "__main__":
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    space = {"torch": torch, "F": F, "nn": nn, "math": math}
    for _, source in functions("[01]*.ipynb"):
        exec(source, space)
    total = passed = 0
    for name, source in functions("99_solutions.ipynb"):
        if name in (sys.argv[1:] or puzzles):
            n, left = count_mutants(name, source, space[f"{name}_slow"], space)
            total, passed = total + n, passed + len(left)
            print(
                f"| {name} | {n - len(left)} / {n} | {100 - 100 * len(left) / n:.1f} % |",
                flush=True,
            )
            for text in left:
                print(f"passes: {text!r}", file=sys.stderr, flush=True)
    print(f"| **all** | {total - passed} / {total} | {100 - 100 * passed / total:.2f} % |")
