// Prints a token, in Node: npm install jsonwebtoken
// SECRET is a line of the file that --token-secret-file names.
import jwt from "jsonwebtoken";

const claims = { room: "tea", sub: "alice" };
console.log(jwt.sign(claims, process.env.SECRET, { expiresIn: "1h" }));
