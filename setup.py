"Package metadata, read from settings.ini (the only place it is written)."
import re
from configparser import ConfigParser
from pathlib import Path

from setuptools import find_namespace_packages, setup

root = Path(__file__).parent
config = ConfigParser(delimiters=['='])
config.read(root/'settings.ini', encoding='utf-8')
cfg = config['DEFAULT']


def absolute(match):
    "A link or an image of README.md, as it has to be written where the files do not lie beside it."
    image, text, target = match.groups()
    if re.match(r'[a-z]+:|#', target):
        return match[0]
    return f'{image}[{text}]({cfg["git_url"]}/{"raw" if image else "blob"}/{cfg["branch"]}/{target})'


readme = (root/'README.md').read_text(encoding='utf-8')
extras = {key.removeprefix('extra_'): value.split() for key, value in cfg.items() if key.startswith('extra_')}
# what a user may want; trackers that may send data away are asked for by name
named_only = ('docs', 'mlflow', 'wandb')
extras['all'] = sorted({need for name, needs in extras.items() if name not in named_only for need in needs})
extras['dev'] = cfg['dev_requirements'].split() + extras['docs'] + extras['all']  # the tests use all of them

setup(
    name=cfg['lib_name'],
    version=cfg['version'],
    description=cfg['description'],
    long_description=re.sub(r'(!?)\[((?:[^\[\]]|\[[^\]]*\])*)\]\(([^)\s]+)\)', absolute, readme),
    long_description_content_type='text/markdown',
    author=cfg['author'],
    author_email=cfg['author_email'],
    url=cfg['git_url'],
    project_urls={'Documentation': cfg['doc_host'] + cfg['doc_baseurl'], 'Source': cfg['git_url']},
    license='Apache-2.0',
    keywords=cfg['keywords'],
    classifiers=cfg['classifiers'].strip().splitlines(),
    python_requires=f">={cfg['min_python']}",
    packages=find_namespace_packages(
        include=[cfg['lib_path'], cfg['lib_path'] + '.*'], exclude=['*.__pycache__*']),
    package_data={cfg['lib_path']: ['py.typed'], f"{cfg['lib_path']}.assets": ['*']},
    install_requires=cfg['requirements'].split(),
    extras_require=extras,
    entry_points={'console_scripts': cfg['console_scripts'].split()},
    zip_safe=False,
)
