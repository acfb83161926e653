"What several test files ask of an error."
import pytest

from corrmatch.files import DataError


def refused(call, *words, error=DataError):
    "The message of the DataError, or other error, that `call` raises: one line that holds all the words."
    with pytest.raises(error) as caught:
        call()
    message = str(caught.value)
    assert message and '\n' not in message and 'Traceback' not in message
    for word in words:
        assert str(word) in message, f'{word!r} is not in: {message}'
    return message
