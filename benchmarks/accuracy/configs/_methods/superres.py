# Methods on a super-resolution network, a small EDSR.
_base_ = ['_half.py']
title = 'EDSR on 91 pictures, Set5 and Set14'
about = """
32 channels, four residual blocks, two times the height and width, 122 000
parameters; its output is added to a bicubic enlargement, which alone comes to
33.97 dB on Set5 and 30.56 dB on Set14. The baseline is trained from random
weights for 2880 iterations, each of eight parts of 24x24 pixels. Networks are
pruned to half of the flops during 360 iterations and fine-tuned for 720. PSNR
is that of Y without the border of two pixels.
"""
commands = """
# DATA/superres/ has the PNG files of the 91 pictures in t91/, and set5/ and
# set14/ beside it, such as github.com/jiny2001/dcscn-super-resolution has them
python benchmarks/accuracy/methods.py superres --data-root DATA/superres
python benchmarks/accuracy/methods_report.py
"""
custom_imports = dict(imports=['mmgfp', 'superres', 'precision'])
default_scope = 'mmengine'
env_cfg = dict()
log_level = 'INFO'
metrics = {'psnr/set14': 'dB on Set14', 'psnr/set5': 'dB on Set5'}

model = dict(type='SmallEDSR', scale=2, width=32, blocks=4)
data_preprocessor = dict(
    type='ImgDataPreprocessor', mean=[0, 0, 0], std=[255, 255, 255]
)
train_dataloader = dict(
    batch_size=8,
    num_workers=0,
    sampler=dict(type='DefaultSampler', shuffle=True),
    collate_fn=dict(type='default_collate'),
    dataset=dict(type='ReducedPictures', folders=['t91'], scale=2, crop=24),
)
test_dataloader = dict(
    batch_size=1,
    num_workers=0,
    sampler=dict(type='DefaultSampler', shuffle=False),
    collate_fn=dict(type='default_collate'),
    dataset=dict(type='ReducedPictures', folders=['set5', 'set14'], scale=2),
)
test_evaluator = dict(type='PSNR', border=2)
test_cfg = dict()
default_hooks = dict(
    checkpoint=dict(type='CheckpointHook', interval=30, max_keep_ckpts=1),
    logger=dict(type='LoggerHook', interval=60),
)
optim_wrapper = dict(
    type='FastestOptimWrapper', optimizer=dict(type='Adam', lr=0.001)
)

input_shape = (128, 128)  # of the small picture, that cost is counted at
# epochs of 12 iterations, and the learning rate of each phase
baseline = dict(epochs=240, lr=0.001)
prune = dict(epochs=30, lr=0.0005)
finetune = dict(epochs=60, lr=0.001)
experiments = {
    name: dict(prune=dict(input_shape=input_shape))
    for name in _base_.experiments
    if name != 'unpruned'
}
