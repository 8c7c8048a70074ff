import assert from 'node:assert/strict';
import { test } from 'node:test';
import { parseConfig } from '../../../src/daemon/config.ts';
import { dropInFor } from '../../../src/daemon/drop-in.ts';

const FILE = '/etc/lunette/lunette.toml';

test('the drop-in names every directory that the configuration writes to, once', () => {
  const config = parseConfig(
    `allow = ["/images", "/more images"]
     [nbd]
     socket = "/run/lunette/nbd.sock"
     [[export]]
     name = "a"
     image = "/images/a.qcow2"
     transport = "nbd"
     overlay = "/over/100%/a.qcow2"
     [[export]]
     name = "b"
     image = "nbd://host/b"
     transport = "nbd"`,
    FILE,
  );
  assert.deepEqual(dropInFor(config, FILE).split('\n'), [
    `# Made from ${FILE} by lunette daemon --print-drop-in.`,
    '[Service]',
    'ReadWritePaths=-/images',
    'ReadWritePaths="-/more images"',
    'ReadWritePaths=-/over/100%%',
    'ReadWritePaths=-/run/lunette',
    'ReadWritePaths=-/var/lib/lunette',
    '',
  ]);
});
