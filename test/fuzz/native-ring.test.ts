import { test } from 'node:test';
import { randomFor } from '../support/random.ts';
import { buildProgram, requiresCompiler, runRule } from '../support/sanitized.ts';

const RING = ['tcmu_ring.cc', 'uio_device.cc', 'bus_guard.cc'];
const NETLINK = ['tcmu_netlink.cc', 'genl_message.cc'];

const ringRules: readonly [string, string][] = [
  ['every-command-once', 'every command comes out of the ring as it was sent and is completed once, in any order'],
  ['garbage', 'no entry, whatever is in it, leads outside of the region'],
  ['reset', 'a reset is seen before anything is fetched or completed after it'],
  ['bad-completions', 'what is not in flight cannot be completed'],
  [
    'unknown-opcode',
    'an entry of an opcode that nobody knows is marked so where it is, however short it is, and what follows it stays whole',
  ],
  [
    'million',
    'of a million entries, good, malformed and unknown, each is completed once; only a damaged ring is called unusable',
  ],
  ['missing-page', 'a page that is taken away costs the ring, not the process'],
];
for (const [rule, words] of ringRules) {
  test(`ring: ${words}`, { skip: requiresCompiler() }, async (t) => {
    await runRule(await buildProgram('ring_test', RING, 'address,undefined'), rule, randomFor(t).seed);
  });
}

test('ring: two threads share it without a race', { skip: requiresCompiler() }, async (t) => {
  await runRule(await buildProgram('ring_test', RING, 'thread'), 'two-threads', randomFor(t).seed);
});

const netlinkRules: readonly [string, string][] = [
  ['right-kind', 'an answer is of its event’s kind, and goes out once'],
  ['watchdog', 'what nobody answers in time is answered with a failure'],
  ['late-answer', 'an answer that comes late does not hit the next event of its device'],
  ['missed', 'an event that nobody heard is answered unless another one waits'],
  ['refusal', 'the kernel’s refusal is told, messages of others are not'],
  ['hang-up', 'a socket that ends is told once'],
  ['garbage', 'messages of any bytes do no harm'],
  ['no-descriptor', 'without a descriptor to wake its thread by, it serves, and ends'],
];
for (const [rule, words] of netlinkRules) {
  test(`netlink: ${words}`, { skip: requiresCompiler() }, async (t) => {
    const { seed } = randomFor(t);
    await runRule(await buildProgram('netlink_test', NETLINK, 'thread'), rule, seed);
    if (rule === 'garbage') await runRule(await buildProgram('netlink_test', NETLINK, 'address,undefined'), rule, seed);
  });
}
