import { lstat, unlink } from 'node:fs/promises';
import { connect } from 'node:net';

/** Removes a socket that nobody listens on any more. Leaves alone what is no socket, and sockets in use: listening then fails. */
export async function removeStaleSocket(path: string): Promise<void> {
  const found = await lstat(path).catch(() => undefined);
  if (found === undefined || !found.isSocket()) return;
  const dead = await new Promise<boolean>((resolve) => {
    const socket = connect(path);
    socket.once('connect', () => {
      socket.destroy();
      resolve(false);
    });
    socket.once('error', (error: NodeJS.ErrnoException) => resolve(error.code === 'ECONNREFUSED'));
  });
  if (dead) await unlink(path).catch(() => undefined);
}
