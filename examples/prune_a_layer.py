"""Train a small network whose hidden neurons are projected after each step, and drop the dead."""

import numpy as np

import projgen

rng = np.random.default_rng(0)
x = rng.standard_normal((500, 50))
goal = np.tanh(x[:, :5] @ rng.standard_normal((5, 3))) @ [1.0, -1.0, 0.5]  # 5 of 50 features count
w = 0.1 * rng.standard_normal((100, 50))  # (out, in), as nn.Linear keeps it: a row is a neuron
v = 0.1 * rng.standard_normal(100)
projection = projgen.build("l1(linf(axis=1))")  # whole neurons vanish
for _ in range(1000):
    hidden = np.tanh(x @ w.T)
    error = (hidden @ v - goal) / len(x)
    back = np.outer(error, v) * (1 - hidden**2)
    v -= 0.5 * hidden.T @ error
    w -= 0.5 * back.T @ x
    projection(w, 3.0, out=w)

alive = projection.active(w)  # one bool for each row
small_w, small_v = w[alive], v[alive]  # tanh(0) is 0: dead neurons add nothing
before, after = np.tanh(x @ w.T) @ v, np.tanh(x @ small_w.T) @ small_v
print(f"{alive.sum()} of {len(w)} neurons are left")
print(f"without the others, outputs change by {abs(before - after).max():.0e}")
print(f"mean squared error {np.mean((after - goal) ** 2):.4f}; variance {np.var(goal):.4f}")
