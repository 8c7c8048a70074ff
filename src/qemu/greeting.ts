import { connect } from 'node:net';
import * as wire from '../nbd/protocol.ts';

/**
 * Waits for a server's first words and takes leave in order. A server that listens does not have its image open yet: it says nothing until it has.
 *
 * @returns false when nobody listens, or the other end closes first
 */
export function waitForGreeting(socket: string): Promise<boolean> {
  return new Promise((resolve) => {
    const stream = connect(socket);
    let greeted = false;
    stream.once('data', () => {
      greeted = true;
      const bytes = Buffer.alloc(20);
      bytes.writeUInt32BE(wire.FIXED_NEWSTYLE, 0);
      bytes.writeUInt32BE(wire.OPTION_MAGIC_HIGH, 4);
      bytes.writeUInt32BE(wire.OPTION_MAGIC_LOW, 8);
      bytes.writeUInt32BE(wire.OPT_ABORT, 12);
      // It closes when it has answered: not being heard would be worth a complaint to it.
      stream.end(bytes);
      stream.resume();
    });
    stream.on('error', () => undefined);
    stream.once('close', () => resolve(greeted));
  });
}
