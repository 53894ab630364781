"""What every Python process that a test starts does first: collect garbage less often.

Importing torch and transformers, most of a rank's time in a test, makes millions of objects that live on; searching them
again and again takes a sixth of it.
"""

import gc

gc.set_threshold(50_000, 10, 10)
