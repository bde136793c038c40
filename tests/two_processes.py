"""A short training by two processes."""

from running import QUIET

TWO = ["--trainer.devices=2", "--trainer.strategy=ddp"]
STEPS, BATCH = 6, 64


SAMPLING = "{class_path: GuidedSampling, init_args: {num_samples: 5, steps: 2, classifier: digits-classifier}}"
FIT = ["fit", "--config=digits.yaml", *QUIET, *TWO, "--model.net.channels=[8]", "--model.net.attention=[]"]
FIT += [f"--data.batch_size={BATCH}", f"--trainer.max_steps={STEPS}", "--trainer.limit_train_batches=3"]
FIT += ["--trainer.limit_val_batches=1", "--trainer.check_val_every_n_epoch=1", "--model.prediction=v"]
FIT += [f"--trainer.callbacks=[{{class_path: EMA}}, {SAMPLING}, {{class_path: Export}}]"]
