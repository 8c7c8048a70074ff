import assert from 'node:assert/strict';
import { createServer } from 'node:net';
import { test } from 'node:test';
import { addressError, connectHost, isLoopback, parseAddress } from '../../../src/daemon/address.ts';
import { portHolder } from '../../../src/daemon/port-holder.ts';
import { requires } from '../../support/requires.ts';

test('addresses are host and port, IPv6 in brackets', () => {
  assert.deepEqual(parseAddress('127.0.0.1:0', 3260), { host: '127.0.0.1', port: 0 });
  assert.deepEqual(parseAddress('[::1]:860', 3260), { host: '::1', port: 860 });
  assert.deepEqual(parseAddress('[::]', 3260), { host: '::', port: 3260 });
  assert.deepEqual(parseAddress('storage.example', 3260), { host: 'storage.example', port: 3260 });
});

test('a port alone is on the loopback', () => {
  assert.deepEqual(parseAddress('3261', 3260), { host: '127.0.0.1', port: 3261 });
});

test('what is no address is refused with an example', () => {
  for (const text of ['', ':3260', '::1', 'host:', 'host:x', 'host:65536', '[::1', '[host]:1', '99999', '1.2.3.4:-1']) {
    assert.throws(() => parseAddress(text, 3260), { code: 'INVALID', help: /127\.0\.0\.1:3260/ }, text);
  }
});

test('loopback addresses are known as such', () => {
  for (const host of ['127.0.0.1', '127.1.2.3', '::1', 'localhost']) assert.ok(isLoopback(host), host);
  for (const host of ['0.0.0.0', '::', '10.0.0.1', 'fe80::1', '128.0.0.1']) assert.ok(!isLoopback(host), host);
});

test('for a wildcard an address is given that can be connected to', () => {
  assert.equal(connectHost('127.0.0.1'), '127.0.0.1');
  assert.match(connectHost('0.0.0.0'), /^\d+\.\d+\.\d+\.\d+$/);
  assert.notEqual(connectHost('0.0.0.0'), '0.0.0.0');
  assert.notEqual(connectHost('::'), '::');
});

test('a port that is taken is named with the program that has it', { skip: requires.linux() }, async (t) => {
  const server = createServer();
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  t.after(() => server.close());
  const { port } = server.address() as { port: number };
  assert.equal(portHolder(port)?.pid, process.pid);

  const taken = Object.assign(new Error('listen EADDRINUSE'), { code: 'EADDRINUSE' });
  const error = addressError(taken, { host: '127.0.0.1', port }, '--listen');
  assert.equal(error.code, 'EXISTS');
  assert.match(error.message, new RegExp(`process ${process.pid}\\b`));
  assert.match(error.help ?? '', /127\.0\.0\.1:0/);
});

test('a port that nobody listens on has no holder', async () => {
  const server = createServer();
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  const { port } = server.address() as { port: number };
  await new Promise((resolve) => server.close(resolve));
  assert.equal(portHolder(port), undefined);
});
