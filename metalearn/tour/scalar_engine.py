"""Reverse-mode differentiation from nothing, in about forty lines of plain Python."""

import math


class Scalar:
    """A number, and for each number it was made of, how a gradient passes on to that one."""

    def __init__(self, value, made_of=()):
        self.value, self.made_of = float(value), made_of

    def __add__(self, other):
        other = lift(other)
        return Scalar(self.value + other.value, ((self, lambda g: g), (other, lambda g: g)))

    def __mul__(self, other):
        other = lift(other)
        passes = ((self, lambda g: g * other), (other, lambda g: g * self))
        return Scalar(self.value * other.value, passes)

    def __pow__(self, n):
        passes = ((self, lambda g: g * n * self ** (n - 1)),) if n else ()
        return Scalar(self.value**n, passes)

    def tanh(self):
        out = Scalar(math.tanh(self.value), ((self, lambda g: g * (1 - out * out)),))
        return out

    def __neg__(self):
        return self * -1

    def __sub__(self, other):
        return self + -other

    def __rsub__(self, other):
        return -self + other

    __radd__, __rmul__ = __add__, __mul__


def lift(number):
    """A number as a Scalar, a constant where it is none."""
    return number if isinstance(number, Scalar) else Scalar(number)


def gradients(output, inputs):
    """D output / d input for each input; Scalars, so they can be differentiated in turn."""
    order, seen = [], set()

    def visit(node):  # what a number was made of comes before it
        if node not in seen:
            seen.add(node)
            for source, _ in node.made_of:
                visit(source)
            order.append(node)

    visit(output)
    total = {output: Scalar(1)}
    for node in reversed(order):
        for source, passes in node.made_of:
            total[source] = total.get(source, 0) + passes(total[node])
    return [lift(total.get(x, 0)) for x in inputs]


def vmap(f, in_dims):
    """F for every item: where in_dims has 0 an argument is a list of items, None shares it."""

    def mapped(*args):
        count = next(len(arg) for arg, dim in zip(args, in_dims) if dim == 0)
        rows = range(count)
        return [f(*(a if d is None else a[i] for a, d in zip(args, in_dims))) for i in rows]

    return mapped
