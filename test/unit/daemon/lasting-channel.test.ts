import assert from 'node:assert/strict';
import { test } from 'node:test';
import { LastingChannel, type LastingListener } from '../../../src/daemon/lasting-channel.ts';
import type { AwaitedEvent, ChannelListener } from '../../../src/netlink/channel.ts';

/** What happened on sockets, which number their events each for itself, as the addon does. */
function setUp() {
  const log: string[] = [];
  const events: AwaitedEvent[] = [];
  const sockets: ChannelListener[] = [];
  let refusing = false;
  const listener: LastingListener = {
    event: (event) => void events.push(event),
    overflow: () => undefined,
    expired: () => undefined,
    trouble: () => undefined,
    lost: () => undefined,
    back: () => void log.push('back'),
  };
  const channel = new LastingChannel((opened) => {
    if (refusing) throw new Error('ENOMEM');
    const socket = sockets.push(opened);
    return {
      answer: ({ ticket }, status) => log.push(`socket ${socket}: answer ${ticket} with ${status}`) > 0,
      leave: ({ ticket }) => void log.push(`socket ${socket}: leave ${ticket}`),
      answerMissedAdd: () => undefined,
      endAnswering: () => void log.push(`socket ${socket}: answers no more`),
      close: () => void log.push(`socket ${socket}: closed`),
    };
  }, listener);
  const tell = (socket: number, ticket: number): AwaitedEvent => {
    sockets[socket - 1]?.event({ kind: 'removed', deviceId: 7, minor: 1, name: 'tcm-user/0/a/qcow2/a', ticket });
    return events[events.length - 1] as AwaitedEvent;
  };
  return { channel, log, sockets, tell, refuse: () => void (refusing = true), accept: () => void (refusing = false) };
}

test('what an earlier socket told of is not answered on a later one, whose tickets begin anew', (t) => {
  t.mock.timers.enable({ apis: ['setTimeout'] });
  const { channel, log, sockets, tell } = setUp();
  const old = tell(1, 1);
  sockets[0]?.failed(-105);
  assert.equal(channel.answer(old, 0), false);
  t.mock.timers.tick(1000);
  const current = tell(2, 1);
  assert.equal(channel.answer(old, 0), false);
  channel.leave(old);
  assert.equal(channel.answer(current, -5), true);
  assert.deepEqual(log, ['socket 1: closed', 'back', 'socket 2: answer 1 with -5']);
  channel.close();
});

test('the kernel is told that nobody answers any more also when there is no socket at that time; none comes back later', (t) => {
  t.mock.timers.enable({ apis: ['setTimeout'] });
  const { channel, log, sockets } = setUp();
  sockets[0]?.failed(-105);
  channel.endAnswering();
  t.mock.timers.tick(100_000);
  channel.close();
  assert.deepEqual(log, ['socket 1: closed', 'socket 2: answers no more', 'socket 2: closed']);
});

test('the end comes also where no socket can be opened for it', (t) => {
  t.mock.timers.enable({ apis: ['setTimeout'] });
  const { channel, log, sockets, refuse, accept } = setUp();
  sockets[0]?.failed(-105);
  refuse();
  channel.endAnswering();
  accept();
  t.mock.timers.tick(100_000);
  channel.close();
  assert.deepEqual(log, ['socket 1: closed']);
});
