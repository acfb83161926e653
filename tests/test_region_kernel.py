"""The vote as one GPU kernel: equal to the definition in Triton's interpreter, accepted by its compiler.

Triton decides when it is imported whether it interprets, so each test runs in a process of its own.
"""
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

triton = pytest.importorskip('triton', reason='Triton is not installed')
ROOT = Path(__file__).resolve().parent.parent

COMPARE = '''
import sys, warnings; warnings.simplefilter('ignore')
import torch
from corrmatch.engine import regions as region
from corrmatch.method.region import propagate_regions

def case(seed, b, m, h, w, n_classes, spread=1):
    "Smooth labels, kept pixels and regions; the first region empty, one single pixel, one all."
    draw = torch.Generator().manual_seed(seed)
    noise = torch.randn(b, m+2, 5, 6, generator=draw)
    waves = torch.nn.functional.interpolate(noise, (h, w), mode='bilinear', align_corners=True)
    label = ((waves[:, 0]*1.5+2).round().clamp(0, 4).long()*spread).clamp(max=n_classes-1)
    regions = waves[:, 2:] > .2
    regions[:, 0], regions[:, 1], regions[:, 2] = False, False, True
    regions[:, 1, h//2, w//2] = True
    return label, waves[:, 1] > -.9, regions

def compare(name, label, keep, regions, tau, n_classes):
    before = [t.clone() for t in (label, keep, regions)]
    ours = region._propagate_by_kernel(label, keep, regions, torch.tensor(tau), n_classes)
    theirs = propagate_regions(label, keep, regions, torch.tensor(tau))
    assert torch.equal(ours[0], theirs[0]) and torch.equal(ours[1], theirs[1]), name
    assert all(torch.equal(a, b) for a, b in zip((label, keep, regions), before)), name
    return int((theirs[2] >= 0).sum()), int((theirs[2] < 0).sum())

accepted = rejected = 0
cases = (
    (0, .3, 5, 1), (1, .5, 5, 1), (2, .85, 21, 4), (3, .6, 256, 63), (4, 0., 5, 1), (5, 1., 5, 1),
    (6, .4, 8, 2))
for seed, tau, k, spread in cases:
    a, r = compare((seed, tau, k), *case(seed, 2, 7, 19, 27, k, spread), tau, k)
    accepted, rejected = accepted+a, rejected+r
assert accepted > 9 and rejected > 9, (accepted, rejected)
label, keep, regions = case(7, 2, 6, 17, 17, 5)
compare('nobody confident', label, keep & False, regions, .5, 5)
compare('nothing but empty regions', label, keep, regions & False, .5, 5)
keep[0] = False; regions[0] = False
compare('one image ignored', label, keep, regions, .5, 5)
compare('no regions', label, keep, regions[:, :0], .5, 5)
compare('one region, one class', label*0, keep, regions[:, 2:3], .1, 1)
everyone = torch.ones(1, 1, 10, dtype=torch.bool)
compare('seven of ten', torch.tensor([[[1]*7 + [2]*3]]), everyone, everyone[None], .7, 3)
compare('tie', torch.tensor([[[2]*5 + [1]*5]]), everyone, everyone[None], .4, 3)
compare('tie at a half', torch.tensor([[[2]*5 + [1]*5]]), everyone, everyone[None], .5, 3)
split = torch.tensor([[[3]*4 + [5]*3 + [6]*3]])
compare('no majority, digits spell a class that no pixel has', split, everyone, everyone[None], .5, 8)
compare('more words than a block', *case(8, 1, 3, 183, 187, 5), .5, 5)
print('equal')
'''

COMPILE = '''
import warnings; warnings.simplefilter('ignore')
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from corrmatch.engine import regions as region
tail = dict(n='i32', n_words='i32')
arguments = {
    '_pack_labels': dict(label='*i64', keep='*u8', planes='*i32', trusted='*i32', grown='*i32', **tail),
    '_pack_regions': dict(
        regions='*u8', trusted='*i32', words='*i32', size='*i32', overlap='*i32', m='i32', **tail),
    '_vote_in_turn': dict(
        words='*i32', trusted='*i32', planes='*i32', grown='*i32', size='*i32', overlap='*i32', tau='*fp32',
        m='i32', n_words='i32', n_classes='i32'),
    '_unpack': dict(planes='*i32', grown='*i32', label='*i64', keep='*u8', **tail)}
for name, signature in arguments.items():
    kernel = getattr(region, name)
    sizes = dict(BITS=5, BLOCK=64 if 'pack_' in name else 1024)
    fixed = {k: v for k, v in sizes.items() if k in kernel.arg_names}
    options = dict(num_warps=16, num_stages=1) if name == '_vote_in_turn' else {}
    signature = {**signature, **dict.fromkeys(fixed, 'constexpr')}
    source = ASTSource(fn=kernel, signature=signature, constexprs=fixed)
    ptx = triton.compile(source, target=GPUTarget('cuda', 90, 32), options=options).asm['ptx']
    assert 'div.full' not in ptx and 'div.approx' not in ptx, name
    if name == '_vote_in_turn': assert ptx.count('div.rn') == 2 and 'popc' in ptx and 'bar.sync' in ptx
print('compiled')
'''


def run(code, tmp_path, **env):
    env = {
        **os.environ, 'PYTHONPATH': str(ROOT), 'TRITON_CACHE_DIR': str(tmp_path), 'OMP_NUM_THREADS': '1',
        **env}
    return subprocess.run([sys.executable, '-c', code], env=env, capture_output=True, text=True, timeout=600)


def test_kernel_equals_the_definition(tmp_path):
    done = run(COMPARE, tmp_path, TRITON_INTERPRET='1')
    assert done.stdout.strip() == 'equal', done.stderr[-2000:]


def test_kernel_compiles_for_a_gpu(tmp_path):
    if not [*Path(triton.__file__).parent.glob('backends/nvidia/bin/ptxas*')] and not shutil.which('ptxas'):
        pytest.skip('the compiler for GPUs is not installed')
    done = run(COMPILE, tmp_path, TRITON_INTERPRET='0')
    assert done.stdout.strip() == 'compiled', done.stderr[-2000:]


def test_regions_do_not_need_triton(tmp_path):
    code = (
        "import sys; sys.modules['triton'] = None\nimport torch\nfrom corrmatch.engine import regions "
        "as region\nassert region.triton is None and not region._has_kernel(torch.device('cuda'), "
        "21)\nprint('fine')")
    assert run(code, tmp_path).stdout.strip() == 'fine'
