// Prints a token, in Node. Install the library in the directory of this file: npm install jsonwebtoken
// SECRET is a line of the file that --token-secret-file names. If the file has one line:
//     SECRET=$(sudo cat /etc/noroshi/token) node create_token.mjs
import jwt from "jsonwebtoken";

const claims = { room: "tea", sub: "alice" };
console.log(jwt.sign(claims, process.env.SECRET, { expiresIn: "1h" }));
