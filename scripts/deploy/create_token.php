<?php
// Prints a token, in PHP, without a library.
// SECRET is a line of the file that --token-secret-file names. If the file has one line:
//     SECRET=$(sudo cat /etc/noroshi/token) php create_token.php
$base64url = fn ($bytes) => rtrim(strtr(base64_encode($bytes), "+/", "-_"), "=");

$claims = ["room" => "tea", "sub" => "alice", "exp" => time() + 3600];
$signed = $base64url('{"alg":"HS256"}') . "." . $base64url(json_encode($claims));
echo $signed . "." . $base64url(hash_hmac("sha256", $signed, getenv("SECRET"), true)) . "\n";
