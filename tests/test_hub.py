"A model goes to the hub and comes back: files, names, threshold; a fake hub, hostile cards, no connection."
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import corrmatch
from corrmatch.files import DataError
from corrmatch.training.builders import make_model
from corrmatch.training.checkpoints import make_card, save_weights
from corrmatch.use.export import export_run
from corrmatch.use.predict import LoadedModel, load
from corrmatch.viz import palette
from runs_for_tests import small

pytest.importorskip('safetensors')
IMAGE = np.random.default_rng(0).integers(0, 256, (40, 50, 3), np.uint8)


@pytest.fixture
def model(tmp_path):
    network = make_model(small(tmp_path/'run'))[0].eval()
    return LoadedModel(
        network, small(tmp_path/'run'), ['sky', 'roe deer', '<b>', 'é', 'x'], palette(5, 'pascal'), .7)


def test_round_trip(model, tmp_path):
    model.save_pretrained(tmp_path/'saved', scores={'mIoU': 12.5}, note='For a test.')
    names = sorted(p.name for p in (tmp_path/'saved').iterdir())
    assert names == ['README.md', 'config.json', 'model.safetensors']
    page = (tmp_path/'saved'/'README.md').read_text(encoding='utf-8')
    assert page.startswith('---\nlibrary_name: corrmatch\n') and '12.50' in page and 'For a test.' in page
    for opened in (
        LoadedModel.from_pretrained(tmp_path/'saved', device='cpu'),
        corrmatch.load(tmp_path/'saved', device='cpu')):
        assert [opened.names, opened.tau] == [model.names, model.tau]
        np.testing.assert_array_equal(opened.colors, model.colors)
        for a, b in zip(opened.predict(IMAGE)[1:3], model.predict(IMAGE)[1:3]):
            np.testing.assert_array_equal(a, b)


class FakeHub:
    "Keeps a repository as bytes; the class of huggingface_hub.HfApi."
    files = dict[str, bytes]()
    calls = list[dict]()

    def create_repo(self, name, **options): self.calls.append(dict(name=name, **options))

    def upload_folder(self, repo_id, folder_path, commit_message):
        self.files.update({p.name: p.read_bytes() for p in Path(folder_path).iterdir()})


def test_push_and_load_from_a_fake_hub(model, tmp_path, monkeypatch):
    hub = pytest.importorskip('huggingface_hub')
    def download(name, file):
        (tmp_path/file).write_bytes(FakeHub.files[file])
        return str(tmp_path/file)
    monkeypatch.setattr(hub, 'HfApi', FakeHub)
    monkeypatch.setattr(hub, 'hf_hub_download', download)
    assert model.push_to_hub('me/deer') == 'hf:me/deer'
    assert FakeHub.calls == [dict(name='me/deer', private=True, exist_ok=True)]
    assert b"corrmatch.load('hf:me/deer')" in FakeHub.files['README.md']
    for opened in (load('hf:me/deer', device='cpu'), LoadedModel.from_pretrained('me/deer', device='cpu')):
        np.testing.assert_array_equal(opened.predict(IMAGE).mask, model.predict(IMAGE).mask)


def test_weights_of_a_saved_model_and_of_the_hub_are_exported(model, tmp_path, monkeypatch):
    "Both are files of weights, although the one is called by its folder and the other has no path."
    hub = pytest.importorskip('huggingface_hub')
    model.save_pretrained(tmp_path/'saved')
    weights = tmp_path/'saved'/'model.safetensors'
    monkeypatch.setattr(hub, 'hf_hub_download', lambda name, file: str(tmp_path/'saved'/file))
    monkeypatch.chdir(tmp_path)
    for run, path in (
        (tmp_path/'saved', tmp_path/'saved.safetensors'), ('hf:me/deer', Path('deer.safetensors'))):
        done = export_run(run, 'safetensors')
        assert done.path == path and done.difference < 1e-4
        opened = load(path, device='cpu')
        assert [opened.names, opened.tau] == [model.names, model.tau]
        with pytest.raises(ValueError, match='that is the file to read'):
            export_run(run, 'safetensors', weights)


def test_a_hub_that_refuses_and_one_that_is_missing(model, monkeypatch):
    hub = pytest.importorskip('huggingface_hub')
    def refuse(*args, **options): raise OSError('401 Client Error\nsecond line')
    monkeypatch.setattr(hub, 'HfApi', lambda: SimpleNamespace(create_repo=refuse))
    with pytest.raises(DataError, match='me/deer: was not uploaded .401 Client Error.; check'):
        model.push_to_hub('me/deer')
    monkeypatch.setitem(sys.modules, 'huggingface_hub', None)
    with pytest.raises(ImportError, match=r'corrmatch-seg\[hub\]'):
        model.push_to_hub('me/deer')


@pytest.mark.parametrize('changes', [
    dict(classes=['a']), dict(classes='abcde'), dict(classes=['a\nb', *'bcde']), dict(colors=None),
    dict(colors=[[0, 0, 300]]*5), dict(tau=2.), dict(tau='x')])
def test_a_card_that_does_not_fit_is_one_line(model, tmp_path, changes):
    card = make_card(model.config) | dict(classes=list('abcde'), colors=[[0, 0, 0]]*5, tau=.5) | changes
    save_weights(model.model, tmp_path/'w.safetensors', card)
    with pytest.raises(DataError, match='its card holds no names, colours and threshold of 5') as caught:
        load(tmp_path/'w.safetensors', device='cpu')
    assert '\n' not in str(caught.value)


def test_a_run_folder_is_not_overwritten(model, tmp_path):
    (tmp_path/'run').mkdir()
    (tmp_path/'run'/'state.json').write_text('{}')
    (tmp_path/'run'/'config.json').write_text(json.dumps(dict(seed=7)))
    with pytest.raises(DataError, match='is a run folder'):
        model.save_pretrained(tmp_path/'run')
    assert json.loads((tmp_path/'run'/'config.json').read_text()) == dict(seed=7)


def test_nothing_is_a_pickle(model, tmp_path):
    "The weights open without torch.load, and the tensors are those of the network."
    from safetensors.torch import load_file
    model.save_pretrained(tmp_path/'saved')
    saved = load_file(tmp_path/'saved'/'model.safetensors')
    assert all(torch.equal(saved[k], v) for k, v in model.model.state_dict().items())
