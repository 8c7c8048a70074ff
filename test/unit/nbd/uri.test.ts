import assert from 'node:assert/strict';
import { test } from 'node:test';
import { formatNbdUri, isNbdUri, parseNbdUri } from '../../../src/nbd/uri.ts';

test('TCP addresses have a default port and export, and IPv6 in brackets', () => {
  assert.deepEqual(parseNbdUri('nbd://host').address, { host: 'host', port: 10809 });
  assert.equal(parseNbdUri('nbd://host').exportName, '');
  assert.deepEqual(parseNbdUri('nbd+tcp://[::1]:99/a%20b').address, { host: '::1', port: 99 });
  assert.equal(parseNbdUri('nbd://[::1]:99/a%20b').exportName, 'a b');
  assert.deepEqual(parseNbdUri('nbd:///x').address, { host: 'localhost', port: 10809 });
});

test('unix sockets and TLS are told by scheme and parameters', () => {
  const uri = parseNbdUri('nbds+unix:///disk@snap?socket=/run/a%3Fb.sock&tls-psk-file=/k&tls-username=bob');
  assert.deepEqual(uri.address, { path: '/run/a?b.sock' });
  assert.deepEqual([uri.tls, uri.exportName, uri.pskFile, uri.user], [true, 'disk@snap', '/k', 'bob']);
  assert.equal(parseNbdUri('nbds://alice@host/').user, 'alice');
});

test('what is wrong with an address is said', () => {
  for (const text of [
    'nbd:host:1',
    'nbd://host:0/x',
    'nbd://host:65536',
    'nbd://a:b:c/',
    'nbd://[junk]/',
    'nbd+unix:///x',
    'nbd+unix://host/x?socket=s',
    'nbd://host/%zz',
    'nbd+vsock://2:10809/x',
    `nbd://host/${'x'.repeat(5000)}`,
  ]) {
    assert.ok(isNbdUri(text));
    assert.throws(() => parseNbdUri(text), { code: 'USAGE', path: text });
  }
});

test('what is formatted is read back', () => {
  for (const [address, name] of [
    [{ host: '::1', port: 1 }, 'a/b ?#@é'],
    [{ path: '/tmp/x y&z.sock' }, 'disk@before'],
  ] as const) {
    const uri = parseNbdUri(formatNbdUri(address, name, true));
    assert.deepEqual([uri.address, uri.exportName, uri.tls], [address, name, true]);
  }
});
