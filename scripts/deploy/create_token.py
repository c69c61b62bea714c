# Prints a token, in Python. Install the library in the environment of this Python: pip install PyJWT
# (Debian: apt install python3-jwt).
# SECRET is a line of the file that --token-secret-file names. If the file has one line:
#     SECRET=$(sudo cat /etc/noroshi/token) python3 create_token.py
import os
import time

import jwt

claims = {"room": "tea", "sub": "alice", "exp": int(time.time()) + 3600}
print(jwt.encode(claims, os.environ["SECRET"], "HS256"))
