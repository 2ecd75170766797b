"""How this project trains beside TRL: `run.toml` with what the comparisons choose, here and in tests/gpu."""

RUN = """\
[model]
base = "{fixture}/model"
adapter = "{fixture}/{adapter}"
[loss]
preset = "paper"
[optimizer]
learning_rate = 1e-3
[schedule]
decay = "constant"
warmup = 0.0
[train]
epochs = {epochs}
batch = {batch}
micro_batch = {micro}
max_steps = {most}
threads = {threads}
[data]
held_out = 0.0
blobs = "blobs"
[checkpoint]
every = 0
[guard]
chosen_drop = 0.0
loss_ratio = 0.0
"""
