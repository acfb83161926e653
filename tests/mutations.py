"Seeded damage to the files of a run: bytes, JSON values, CSV cells, contents of checkpoints."
import copy
import csv
import io
import json
import random

import torch

ODD = (
    None,
    True,
    False,
    -1,
    0,
    3,
    10**9,
    10**30,
    1.5,
    -0.5,
    1e308,
    float('nan'),
    float('inf'),
    '',
    'x',
    '../../x',
    '/',
    '\0',
    'é\n',
    '٣',
    [],
    [1, [2]],
    {},
    {'a': {'b': []}},
    [[[[]]]])
CELLS = (
    '', 'nan', 'inf', '-inf', '1e999', '-1', '0', '1e308', '9' * 400, 'x', '1,5', '\0', '"', '٣', 'é', ' 7 ',
    '0x10', 'None', 'x' * 200_000)


def mutate_bytes(data:bytes, draw:random.Random)->bytes|None:
    "Damage bytes in one of a dozen ways; None stands for a folder in the place of the file."
    n, at = len(data), draw.randrange(len(data) + 1)
    end = min(n, at + draw.randrange(1, 64))
    kinds = [
        lambda: data[:at], lambda: data[at:], lambda: b'', lambda: data[:at] + bytes(end - at) + data[end:],
        lambda: data[:at] + data[end:], lambda: data[:at] + data[at:end] * 3 + data[end:],
        lambda: data[:at] + draw.randbytes(end - at) + data[end:], lambda: data + draw.randbytes(40),
        lambda: draw.randbytes(draw.randrange(1, 400)), lambda: b'\xff\xfe' + data,
        lambda: data.replace(b'\n', b'\r'), lambda: bytes(n), lambda: None, lambda: b'\xef\xbb\xbf' + data]
    if draw.random() < .5 and n:  # bits, the commonest damage
        changed = bytearray(data)
        for _ in range(draw.choice((1, 1, 3, 20))):
            changed[draw.randrange(n)] ^= 1 << draw.randrange(8)
        return bytes(changed)
    return draw.choice(kinds)()


def mutate_json(data:bytes, draw:random.Random)->bytes:
    "Change, drop or add a value, or replace the whole."
    record = json.loads(data)
    for _ in range(draw.choice((1, 1, 2))):
        if draw.random() < .1:
            return json.dumps(draw.choice(ODD)).encode()
        key = draw.choice([*record, 'new'])
        if draw.random() < .1:
            record.pop(key, None)
        else:
            record[key] = draw.choice(ODD)
    if draw.random() < .03:
        return b'['*100_000
    if draw.random() < .03:
        return b'{"steps": ' + b'9'*5000 + b'}'
    return json.dumps(record).encode()


def mutate_csv(data:bytes, draw:random.Random)->bytes:
    "Change cells, columns and rows."
    rows = list(csv.reader(io.StringIO(data.decode())))
    for _ in range(draw.choice((1, 1, 2, 5))):
        row = draw.randrange(len(rows))
        column = draw.randrange(len(rows[0]))
        kind = draw.randrange(8)
        if kind < 4 and column < len(rows[row]):
            rows[row][column] = draw.choice(CELLS)
        elif kind == 4:
            rows = [r[:column] + r[column+1:] for r in rows]
        elif kind == 5:
            rows[row] = rows[row] + [draw.choice(CELLS)]*draw.choice((1, 50))
        elif kind == 6:
            rows.insert(row, draw.choice((rows[row], [], rows[0])))
        else:
            rows[row] = rows[row][:column]
        if not rows[0]:
            rows[0] = ['step']
    text = io.StringIO()
    csv.writer(text).writerows(rows)
    return text.getvalue().encode()


def mutate_state(data:bytes, draw:random.Random)->bytes:
    "A checkpoint that torch reads, with other contents: no checksum, or none that helps."
    state = torch.load(io.BytesIO(data), weights_only=True)
    key = draw.choice(list(state))
    odd = (*ODD, torch.zeros(()), torch.full((3,), float('nan')), torch.zeros(0, dtype=torch.int64))
    kind = draw.randrange(6)
    if kind == 0:
        state.pop(key)
    elif kind == 1:
        state[key] = draw.choice(odd)
    elif kind == 2:
        state = draw.choice(odd)
    else:
        part = state[draw.choice(('config', 'config', 'model', 'optimizer', 'threshold'))]
        name = draw.choice(list(part))
        value = part[name]
        choices = list(odd)
        if isinstance(value, torch.Tensor) and value.ndim:
            choices += [
                value[:-1], value.double(), value.flatten(), value.to(torch.int64), value.to_sparse(),
                value.expand(1000, *value.shape)]
        if isinstance(value, dict) and value and draw.random() < .8:
            part[name] = copy.copy(value)
            part[name][draw.choice(list(value))] = draw.choice(odd)
        elif draw.random() < .1:
            part.pop(name)
        elif draw.random() < .1:
            part[draw.choice(('new', 7, (1, 2)))] = draw.choice(odd)
        else:
            part[name] = draw.choice(choices)
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.getvalue()
