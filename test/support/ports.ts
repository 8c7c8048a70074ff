/** TCP ports for programs that cannot take port 0 and tell which one they got. */

import { createServer } from 'node:net';

/** A TCP port on 127.0.0.1 that was free a moment ago. Prefer listening on port 0 where the program allows it. */
export function freePort(): Promise<number> {
  return new Promise((resolve, reject) => {
    const server = createServer();
    server.once('error', reject);
    server.listen(0, '127.0.0.1', () => {
      const address = server.address();
      server.close(() => {
        if (address === null || typeof address === 'string') reject(new Error('a TCP server has no port'));
        else resolve(address.port);
      });
    });
  });
}
