# Prints a token, in Python: pip install PyJWT
# SECRET is a line of the file that --token-secret-file names.
import os
import time

import jwt

claims = {"room": "tea", "sub": "alice", "exp": int(time.time()) + 3600}
print(jwt.encode(claims, os.environ["SECRET"], "HS256"))
