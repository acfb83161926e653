"""Execute notebooks, each in a process of its own, and store their outputs, byte for byte the same each time.

Usage: python tools/execute.py [NOTEBOOK ...]      (default: all of nbs/)
Cells marked with a flag of `tst_flags` (settings.ini) are left as they are.
"""
import os
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

os.environ['IN_TEST'] = '1'

from execnb.nbio import read_nb, write_nb
from execnb.shell import CaptureShell
from nbdev.config import get_config
from nbdev.doclinks import nbglob
from nbdev.process import NBProcessor

VOLATILE = 'application/vnd.jupyter.widget-view+json'  # holds a random model id


def drop_volatile(cell) -> None:
    "Remove from the outputs of a cell what differs from one execution to the next."
    for output in cell.get('outputs', []):
        output.get('data', {}).pop(VOLATILE, None)
        output.get('metadata', {}).pop(VOLATILE, None)
    if 'outputs' in cell:
        cell['outputs'] = [
            o for o in cell['outputs'] if o.get('output_type') != 'stream' or o.get('name') != 'stderr']


def execute(path: Path, skip_flags: set) -> float:
    "Run all cells of one notebook, write the outputs back, return the seconds it took."
    start = time.time()
    nb = read_nb(path)
    directives = [getattr(c, 'directives_', {}) for c in NBProcessor(path).nb.cells]

    def is_skipped(cell):
        d = directives[cell.idx_]
        return (cell.cell_type != 'code' or 'nbdev_export(' in cell.source
                or d.get('eval:', [''])[0] == 'false' or bool(skip_flags & d.keys()))

    for cell in nb.cells:
        if not is_skipped(cell):
            cell['outputs'] = []  # execnb leaves those of a cell that shows nothing any more
    os.chdir(path.parent)
    shell = CaptureShell(path, mpl_format='png')  # plain PNG: retina figures are four times as large
    shell._run("set_matplotlib_formats('png', metadata={'Software': None})")
    shell.run_all(nb, exc_stop=True, preproc=is_skipped)
    for cell in nb.cells:
        drop_volatile(cell)
    nb.metadata.pop('widgets', None)
    write_nb(nb, path)
    return time.time() - start


def main(paths: list):
    cfg = get_config()
    sys.path.insert(0, str(cfg.config_path))
    skip_flags = set(cfg.tst_flags.split())
    # settings of matplotlib, seeds and folders of one notebook would reach the next one in the same process
    with ProcessPoolExecutor(1, max_tasks_per_child=1) as pool:
        for path in [Path(p).absolute() for p in paths] or nbglob(cfg.nbs_path, as_path=True):
            seconds = pool.submit(execute, Path(path).absolute(), skip_flags).result()
            print(f'{Path(path).name}: {seconds:.1f} s, {Path(path).stat().st_size//1024} KB', flush=True)


if __name__ == '__main__':
    main(sys.argv[1:])
