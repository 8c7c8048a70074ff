/**
 * Before `npm pack`: takes node_modules/usocket away, so that it is not packed along with dbus-next, which is bundled
 * to leave it out (docs/decisions.md, "dbus-next is bundled"). Nothing in the checkout uses it; `npm ci` brings it back.
 */

import { rmSync } from 'node:fs';
import { fileURLToPath } from 'node:url';

rmSync(fileURLToPath(new URL('../node_modules/usocket', import.meta.url)), { recursive: true, force: true });
