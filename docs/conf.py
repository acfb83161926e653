"Settings of the site; tools/docs.py writes the pages and calls sphinx."
from latex2mathml.converter import convert
from latex2mathml.exceptions import (DenominatorNotFoundError, DoubleSubscriptsError, DoubleSuperscriptsError, ExtraLeftOrMissingRightError,
                                     InvalidStyleForGenfracError, InvalidWidthError, LimitsMustFollowMathOperatorError, MissingEndError,
                                     MissingSuperScriptOrSubscriptError, NoAvailableTokensError, NumeratorNotFoundError)
