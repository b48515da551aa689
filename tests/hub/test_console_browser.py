"""The console in a real browser: signed in, under its policy, live without a reload."""

import asyncio
from pathlib import Path

import pytest
from fleet_simulator import SimulatedDevice, make_hub
from playwright.async_api import async_playwright, expect

from sync.protocol import State

FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"]


@pytest.mark.browser
async def test_a_device_row_changes_live(tmp_path: Path) -> None:
    hub = make_hub(tmp_path)
    good = hub.release("tickets", "1.0.0")
    bad = hub.release("tickets", "1.1.0")
    viewer = hub.cli("token", "create", "--role", "viewer")["token"]
    with hub.serving():
        device = SimulatedDevice("press-01", tmp_path / "press-01")
        device.enroll(hub, "line-1")
        async with async_playwright() as playwright, device:
            browser = await playwright.chromium.launch(executable_path="/usr/bin/chromium", args=FLAGS)
            context = await browser.new_context(ignore_https_errors=True)
            page = await context.new_page()
            complaints: list[str] = []
            page.on("pageerror", lambda error: complaints.append(str(error)))
            page.on("console", lambda said: complaints.append(said.text) if said.type == "error" else None)

            await page.goto(f"{hub.url}/console")
            await page.fill("#token", "oph_wrong_token")
            await page.click("button[type=submit]")
            await expect(page.get_by_role("alert")).to_contain_text("unknown")
            complaints.clear()  # the browser reports that 401 itself
            await page.fill("#token", hub.token)
            await page.click("button[type=submit]")
            await expect(page.locator("#live[data-state=up]")).to_be_visible()
            await page.evaluate("window.sameDocument = true")
            row = page.locator("#device-press-01")
            await expect(row).to_contain_text("nothing yet")

            hub.cli("rollout", "create", "--release", "tickets@1.0.0", "--group", "line-1")
            await device.told(good)
            await device.say(good, State.FETCHING)
            await expect(row.locator(".chip.moving")).to_contain_text("tickets 1.0.0 fetching")
            await device.say(good, State.COMMITTED)
            await expect(row.locator(".chip")).to_have_text("tickets 1.0.0")
            await expect(row.locator(".state")).to_have_text("online")
            await expect(page.locator("#rollout-1 .badge")).to_have_text("completed")

            number = hub.cli("rollout", "create", "--release", "tickets@1.1.0", "--group", "line-1")["id"]
            await device.told(bad)
            await device.say(bad, State.ROLLED_BACK, "<b>probe 1</b> answered something else")
            await expect(row.locator(".why")).to_contain_text("<b>probe 1</b> answered something else")
            await expect(page.locator(f"#rollout-{number} .badge")).to_have_text("halted")
            page.on("dialog", lambda dialog: asyncio.ensure_future(dialog.accept()))
            await page.locator(f"#rollout-{number}").get_by_role("button", name="Abort").click()
            await expect(page.locator(f"#rollout-{number} .badge")).to_have_text("aborted")
            await device.told(good)

            await device.trail.append("intent", "r1", "internal", "someone", {}, b"prompt")
            await device.push()
            await expect(page.locator("#audit")).to_contain_text("1 of 1")
            await device.link.__aexit__(None, None, None)
            await expect(row.locator(".state")).to_have_text("offline")
            assert await page.evaluate("window.sameDocument") is True
            assert complaints == []

            other = await (await browser.new_context(ignore_https_errors=True)).new_page()
            await other.goto(f"{hub.url}/console")
            await other.fill("#token", viewer)
            await other.click("button[type=submit]")
            await expect(other.locator("#device-press-01")).to_be_visible()
            await expect(other.get_by_role("button", name="Abort").first).to_be_hidden()
            refused = await other.evaluate(
                "fetch('/console/rollouts/1/abort', {method: 'POST'}).then(answer => answer.status)"
            )
            assert refused == 403
            await browser.close()
